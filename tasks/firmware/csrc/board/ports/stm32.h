/**
 * What the STM32 families share: the GPIO block, and SysTick, which goes on in Sleep mode.
 *
 * source    RM0390 section 8.4, RM0432 8.4, RM0433 11.4, RM0456 13.4 (GPIO registers); Armv7-M ARM B3.3 (SysTick),
 *           B1.5.19 (WFI wakes for an interrupt that PRIMASK keeps from being taken)
 */
#ifndef EDGEFRONT_STM32_H
#define EDGEFRONT_STM32_H

#include "kind.h"
#include "port.h"

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
#define SCB_ICSR (*(volatile uint32_t *)0xE000ED04u)

#define SYST_CSR_ENABLE (1u << 0)
#define SYST_CSR_TICKINT (1u << 1)
#define SYST_CSR_CLKSOURCE (1u << 2)
#define SCB_ICSR_PENDSTCLR (1u << 25)
#define SCB_ICSR_PENDSTSET (1u << 26)

/** Ports are GPIO_STRIDE apart, from port A on, in every family. */
#define GPIO_STRIDE 0x400u
#define GPIO_MODER(gpio_a) (*(volatile uint32_t *)((gpio_a) + GPIO_STRIDE * EDGEFRONT_TRIGGER_PORT + 0x00u))
#define GPIO_BSRR(gpio_a) (*(volatile uint32_t *)((gpio_a) + GPIO_STRIDE * EDGEFRONT_TRIGGER_PORT + 0x18u))
#define GPIO_MODE_MASK 3u
#define GPIO_MODE_OUTPUT 1u

static inline void stm32_trigger(uintptr_t gpio_a, uint32_t is_high)
{
    GPIO_BSRR(gpio_a) = 1u << (is_high ? EDGEFRONT_TRIGGER_PIN : EDGEFRONT_TRIGGER_PIN + 16u);
}

/** `enable`: the register that switches the clocks of the GPIO ports on, port A at bit 0. */
static inline void stm32_trigger_pin(uintptr_t gpio_a, volatile uint32_t *enable)
{
    *enable |= 1u << EDGEFRONT_TRIGGER_PORT;
    (void)*enable; /* the clock is there two cycles later (RM0390 6.2.14 and its like) */
    stm32_trigger(gpio_a, 0);
    const uint32_t mode = GPIO_MODER(gpio_a) & ~(GPIO_MODE_MASK << (2u * EDGEFRONT_TRIGGER_PIN));
    GPIO_MODER(gpio_a) = mode | GPIO_MODE_OUTPUT << (2u * EDGEFRONT_TRIGGER_PIN);
}

static inline void stm32_sleep(uint32_t clock_hz, uint32_t ms)
{
    __asm volatile("cpsid i" ::: "memory");
    SYST_RVR = clock_hz / 1000u - 1u;
    SYST_CVR = 0;
    SYST_CSR = SYST_CSR_CLKSOURCE | SYST_CSR_TICKINT | SYST_CSR_ENABLE;
    while (ms) {
        __asm volatile("dsb\n\twfi" ::: "memory");
        if (SCB_ICSR & SCB_ICSR_PENDSTSET) {
            SCB_ICSR = SCB_ICSR_PENDSTCLR;
            --ms;
        }
    }
    SYST_CSR = 0;
    SCB_ICSR = SCB_ICSR_PENDSTCLR;
}

#endif
