/**
 * Vector table and reset for any Cortex-M0+, M3, M4, M7 or M33: copy .data, clear .bss, paint the stack, switch the FPU
 * on. Clocks and caches are the port's.
 *
 * The loops store through volatile pointers so that no compiler turns them into calls of memset or memcpy.
 */
#include "mailbox.h"
#include "port.h"

extern uint32_t __edgefront_data_load[];
extern uint32_t __edgefront_data_start[];
extern uint32_t __edgefront_data_end[];
extern uint32_t __edgefront_bss_start[];

#define VTOR (*(volatile const void *volatile *)0xE000ED08u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)

void Reset_Handler(void);
void edgefront_fault(void);

typedef void (*edgefront_vector_t)(void);

#define FAULT edgefront_fault
/** No interrupt is ever enabled, so the table ends after the core's own exceptions. */
__attribute__((section(".vectors"), used)) const edgefront_vector_t edgefront_vectors[16] = {
    (edgefront_vector_t)(uintptr_t)__edgefront_stack_top,
    Reset_Handler,
    FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT, FAULT,
};

__attribute__((noreturn, used)) void Reset_Handler(void)
{
    VTOR = edgefront_vectors; /* a boot loader may have left its own table there; a Cortex-M0+ may lack the register */
    const uint32_t *load = __edgefront_data_load;
    for (volatile uint32_t *word = __edgefront_data_start; word < __edgefront_data_end; ++word) {
        *word = *load++;
    }
    for (volatile uint32_t *word = __edgefront_bss_start; word < __edgefront_bss_end; ++word) {
        *word = 0;
    }
    const uint32_t *here;
    __asm volatile("mov %0, sp" : "=r"(here));
    for (volatile uint32_t *word = __edgefront_stack_bottom; word < here; ++word) {
        *word = EDGEFRONT_STACK_PAINT;
    }
#if defined(__ARM_FP)
    CPACR |= 0xFu << 20;
    __asm volatile("dsb\n\tisb" ::: "memory");
#endif
    (void)edgefront_main();
    for (;;) {
    }
}

/** Every exception ends here: say so in the mailbox and stay. */
__attribute__((noreturn, noinline, used)) void edgefront_fault(void)
{
    uint32_t number;
    __asm volatile("mrs %0, ipsr" : "=r"(number));
    edgefront_mailbox.error_code = EDGEFRONT_ERROR_FAULT + number;
    edgefront_mailbox.status = EDGEFRONT_ERROR;
    if (edgefront_may_use_peripherals()) {
        edgefront_port_cache(0); /* the mailbox may lie in it */
    }
    for (;;) {
    }
}
