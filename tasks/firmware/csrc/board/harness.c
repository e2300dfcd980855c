/**
 * Waits for commands in the mailbox, runs the network, counts cycles where the core can, and reports the stack's
 * high-water mark. Input and output stay in the arena: the mailbox only says where.
 */
#include "edgefront.h"
#include "mailbox.h"
#include "port.h"

#define DEMCR (*(volatile uint32_t *)0xE000EDFCu)
#define DWT_CTRL (*(volatile uint32_t *)0xE0001000u)
#define DWT_CYCCNT (*(volatile uint32_t *)0xE0001004u)
#define DWT_LAR (*(volatile uint32_t *)0xE0001FB0u)

#define DEMCR_TRCENA (1u << 24)
#define DWT_CTRL_CYCCNTENA (1u << 0)
#define DWT_UNLOCK 0xC5ACCE55u

volatile edgefront_mailbox_t edgefront_mailbox;

void edgefront_ready(void);
void edgefront_after_run(void);

/** The firmware waits here for a command; an emulator stops here. */
__attribute__((noinline)) void edgefront_ready(void)
{
    while (edgefront_mailbox.command == 0) {
    }
}

/** Marks the end of an inference. */
__attribute__((noinline)) void edgefront_after_run(void)
{
    __asm volatile("" ::: "memory");
}

#define ONCE __attribute__((noinline)) /* one copy of the code, as small as the compiler alone would not make it */

static ONCE uint32_t crc32(const uint8_t *bytes, uint32_t n_bytes)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (uint32_t i = 0; i < n_bytes; ++i) {
        crc ^= bytes[i];
        for (int32_t bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

/** Start the cycle counter. It is missing or dead on some cores and all emulators: then it does not move. Armv6-M has
 * none, and its debug registers belong to the debugger. */
static uint32_t start_cycle_counter(void)
{
#if __ARM_ARCH < 7
    return 0u;
#else
    DEMCR |= DEMCR_TRCENA;
#if __ARM_ARCH == 7
    DWT_LAR = DWT_UNLOCK; /* Cortex-M7 locks the unit; on Cortex-M4 nothing listens here */
#endif
    DWT_CYCCNT = 0;
    DWT_CTRL |= DWT_CTRL_CYCCNTENA;
    const uint32_t before = DWT_CYCCNT;
    __asm volatile("nop\n\tnop\n\tnop\n\tnop");
    return DWT_CYCCNT != before ? 1u : 0u;
#endif
}

static uint32_t stack_used(void)
{
    const volatile uint32_t *word = __edgefront_stack_bottom;
    while (word < __edgefront_stack_top && *word == EDGEFRONT_STACK_PAINT) {
        ++word;
    }
    return (uint32_t)((uintptr_t)__edgefront_stack_top - (uintptr_t)word);
}

static void fail(uint32_t code)
{
    edgefront_mailbox.error_code = code;
    edgefront_mailbox.status = EDGEFRONT_ERROR;
}

static uint32_t is_input_right(const edgefront_sizes_t *sizes)
{
    return crc32((const uint8_t *)sizes->input, sizes->input_bytes) == edgefront_mailbox.input_crc ? 1u : 0u;
}

/** With the cache for data on, which is off whenever a debugger may look. */
static void cache(uint32_t is_on)
{
    if (edgefront_may_use_peripherals()) {
        edgefront_port_cache(is_on);
    }
}

static void trigger(uint32_t is_high)
{
    if (edgefront_may_use_peripherals()) {
        edgefront_port_trigger(is_high);
    }
}

/** Nothing where the clock is not known: milliseconds cannot be told then. */
static void idle(void)
{
    if (edgefront_mailbox.clock_hz && edgefront_mailbox.idle_ms) {
        edgefront_port_sleep(edgefront_mailbox.clock_hz, edgefront_mailbox.idle_ms);
    }
}

static void take_temperature(void)
{
    edgefront_mailbox.temperature_mdeg = edgefront_may_use_peripherals() ? edgefront_port_temperature() : INT32_MIN;
}

/** Cycles of one inference; 0 without a counter. */
static uint32_t infer(void)
{
    const uint32_t has_counter = edgefront_mailbox.has_cycle_counter;
    const uint32_t before = has_counter ? DWT_CYCCNT : 0;
    (void)edgefront_run(0, 0);
    edgefront_after_run();
    return has_counter ? DWT_CYCCNT - before : 0;
}

/** The cache is off again: what the network left is in the RAM. */
static void report(const edgefront_sizes_t *sizes)
{
    edgefront_mailbox.output_crc = crc32((const uint8_t *)sizes->output, sizes->output_bytes);
    edgefront_mailbox.stack_used_bytes = stack_used();
    edgefront_mailbox.sequence += 1;
    edgefront_mailbox.status = EDGEFRONT_DONE;
}

static void run_once(const edgefront_sizes_t *sizes)
{
    cache(1);
    edgefront_mailbox.cycles = infer();
    cache(0);
    report(sizes);
}

/** By words, wherever they lie: an input need not be aligned. No compiler makes a call of it. */
static ONCE void copy(int8_t *to, const int8_t *from, uint32_t n_bytes)
{
    typedef struct __attribute__((packed, may_alias)) {
        uint32_t value;
    } word_t;
    uint32_t i = 0;
    for (; i + 4u <= n_bytes; i += 4u) {
        ((volatile word_t *)(to + i))->value = ((const word_t *)(from + i))->value;
    }
    for (; i < n_bytes; ++i) {
        ((volatile int8_t *)to)[i] = from[i];
    }
}

static void run_window(const edgefront_sizes_t *sizes)
{
    int8_t *const kept = (int8_t *)__edgefront_bss_end;
    const uint32_t room = (uint32_t)((uintptr_t)__edgefront_ram_end - (uintptr_t)__edgefront_bss_end);
    const uint32_t keeps_input = sizes->input_bytes <= room ? 1u : 0u;
    uint64_t cycles = 0;
    if (keeps_input) {
        copy(kept, sizes->input, sizes->input_bytes);
    }
    idle();
    cache(1);
    trigger(1);
    for (uint32_t left = edgefront_mailbox.repeats; left; --left) {
        if (keeps_input) {
            copy(sizes->input, kept, sizes->input_bytes);
        }
        cycles += infer();
    }
    trigger(0);
    cache(0);
    idle();
    edgefront_mailbox.window_cycles_low = (uint32_t)cycles;
    edgefront_mailbox.window_cycles_high = (uint32_t)(cycles >> 32);
    edgefront_mailbox.keeps_input = keeps_input;
    take_temperature();
    report(sizes);
}

static void obey(uint32_t command, const edgefront_sizes_t *sizes)
{
    if (command != EDGEFRONT_COMMAND_RUN && command != EDGEFRONT_COMMAND_WINDOW) {
        fail(EDGEFRONT_ERROR_COMMAND);
    } else if (!is_input_right(sizes)) {
        fail(EDGEFRONT_ERROR_CRC);
    } else if (command == EDGEFRONT_COMMAND_RUN) {
        run_once(sizes);
    } else if (!edgefront_mailbox.repeats || edgefront_mailbox.idle_ms > EDGEFRONT_LONGEST_IDLE_MS) {
        fail(EDGEFRONT_ERROR_WINDOW);
    } else {
        run_window(sizes);
    }
}

int edgefront_main(void)
{
    const edgefront_sizes_t *sizes = edgefront_sizes();
    edgefront_mailbox.clock_hz = edgefront_may_use_peripherals() ? edgefront_port_init() : 0;
    take_temperature();
    (void)edgefront_init();
    for (uint32_t i = 0; i < sizeof edgefront_image_id; ++i) {
        edgefront_mailbox.image_id[i] = edgefront_image_id[i];
    }
    edgefront_mailbox.version = EDGEFRONT_MAILBOX_VERSION;
    edgefront_mailbox.input_address = (uint32_t)(uintptr_t)sizes->input;
    edgefront_mailbox.input_bytes = sizes->input_bytes;
    edgefront_mailbox.output_address = (uint32_t)(uintptr_t)sizes->output;
    edgefront_mailbox.output_bytes = sizes->output_bytes;
    edgefront_mailbox.has_cycle_counter = start_cycle_counter();
    edgefront_mailbox.stack_reserved_bytes =
        (uint32_t)((uintptr_t)__edgefront_stack_top - (uintptr_t)__edgefront_stack_bottom);
    edgefront_mailbox.magic = EDGEFRONT_MAGIC;
    for (;;) {
        edgefront_ready();
        const uint32_t command = edgefront_mailbox.command;
        edgefront_mailbox.command = 0;
        edgefront_mailbox.error_code = 0;
        edgefront_mailbox.status = EDGEFRONT_RUNNING;
        obey(command, sizes);
    }
}
