/* A small hand-written firmware that speaks the mailbox protocol, for tests of the agent.
 *
 * Two layers over int8 vectors of N bytes: double every byte, then add one. The first input byte chooses a misbehaviour.
 */
#include <stdint.h>

#ifndef N
#define N 16
#endif

enum { WELL = 0, HANG = 101, OVERFLOW_STACK = 102, WRITE_OUTSIDE = 103, UNDEFINED = 104, WRONG_FIRST = 105, WRONG_SECOND = 106,
       WRITE_FLASH = 107, SLEEP = 108, SPIN_IN_FAULT = 109, JUMP_AWAY = 110, BAD_CRC = 111 };

struct mailbox {
    uint32_t magic, version;
    uint8_t image_id[32];
    uint32_t command, status, error_code, input_address, input_bytes, output_address, output_bytes, input_crc, output_crc,
        sequence, has_cycle_counter, cycles, stack_reserved_bytes, stack_used_bytes, repeats, idle_ms, window_cycles_low,
        window_cycles_high, clock_hz;
    int32_t temperature_mdeg;
    uint32_t keeps_input;
};

extern uint32_t __edgefront_stack_bottom[], __edgefront_stack_top[], __data_load[], __data_start[], __data_end[], __bss_start[],
    __bss_end[];

volatile struct mailbox edgefront_mailbox;
int8_t edgefront_arena[2 * N + 8];
static int8_t input[N], output[N];
static int8_t one = 1; /* in .data: start-up must copy it */
__attribute__((used)) const uint8_t edgefront_image_id[32] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
                                        17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32};

#define CYCLE_COUNTER ((volatile uint32_t *)0xE0001004)
#define MARKER __attribute__((noinline, used))

MARKER void edgefront_ready(void) { __asm volatile("nop" ::: "memory"); }
MARKER void edgefront_after_run(void) { __asm volatile("nop" ::: "memory"); }
MARKER void edgefront_fault(void) {
    edgefront_mailbox.status = 3;
    for (;;) __asm volatile("nop");
}

static uint32_t crc32(const int8_t *data, uint32_t n) {
    uint32_t crc = ~0u;
    for (uint32_t i = 0; i < n; i++) {
        crc ^= (uint8_t)data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

MARKER uint32_t recurse(uint32_t depth) {
    volatile uint32_t frame[32];
    frame[0] = depth;
    return depth ? recurse(depth + 1) + frame[0] : 0;
}

static void misbehave(int8_t how) {
    if (how == HANG) for (;;) __asm volatile("nop");
    if (how == OVERFLOW_STACK) recurse(1);
    if (how == WRITE_OUTSIDE) *(volatile uint32_t *)0x60000000 = 1;
    if (how == UNDEFINED) __asm volatile("udf #0");
    if (how == WRITE_FLASH) *(volatile uint32_t *)(uintptr_t)edgefront_image_id = 1;
    if (how == SLEEP) __asm volatile("wfi");
    if (how == SPIN_IN_FAULT) edgefront_fault();
    if (how == JUMP_AWAY) ((void (*)(void))0x70000001)();
}

MARKER void edgefront_layer_00_double(void) {
    for (int i = 0; i < N; i++) edgefront_arena[i] = (int8_t)(2 * input[i]);
    if (input[0] == WRONG_FIRST) edgefront_arena[3] ^= 1;
}

MARKER void edgefront_layer_01_add(void) {
    for (int i = 0; i < N; i++) edgefront_arena[N + i] = (int8_t)(edgefront_arena[i] + one);
    if (input[0] == WRONG_SECOND) edgefront_arena[N + 2] ^= 1;
}

MARKER void edgefront_run(void) {
    misbehave(input[0]);
    edgefront_layer_00_double();
    edgefront_layer_01_add();
    for (int i = 0; i < N; i++) output[i] = edgefront_arena[N + i];
}

#ifdef RTT
/* SEGGER's RTT control block with one channel up, whose buffer is so small that texts wrap round. */
struct channel {
    const char *name;
    char *buffer;
    uint32_t size, write, read, flags;
};
struct rtt {
    char id[16];
    uint32_t n_up, n_down;
    struct channel up[1];
};
volatile struct rtt _SEGGER_RTT;
static char rtt_buffer[24];

static void rtt_start(void) {
    volatile struct channel *up = _SEGGER_RTT.up;
    up->name = "Terminal";
    up->buffer = rtt_buffer;
    up->size = sizeof rtt_buffer;
    _SEGGER_RTT.n_up = 1;
    static const char id[16] = "SEGGER RTT"; /* last, so that nobody finds a half-made block */
    for (int i = 0; i < 16; i++) _SEGGER_RTT.id[i] = id[i];
}

static void rtt_write(const char *text) {
    volatile struct channel *up = _SEGGER_RTT.up;
    for (; *text; text++) {
        uint32_t next = (up->write + 1) % up->size;
        if (next == up->read) return; /* full: the rest is lost */
        up->buffer[up->write] = *text;
        up->write = next;
    }
}
#else
static void rtt_start(void) {}
static void rtt_write(const char *text) { (void)text; }
#endif

static uint32_t stack_used(void) {
    uint32_t *word = __edgefront_stack_bottom;
    while (*word == 0xC5C5C5C5u) word++;
    return (uint32_t)((char *)__edgefront_stack_top - (char *)word);
}

static void serve(void) {
    volatile struct mailbox *m = &edgefront_mailbox;
    for (;;) {
        edgefront_ready();
        if (m->command != 1 && m->command != 2) continue;
        uint32_t runs = m->command == 1 ? 1 : m->repeats;
        m->command = 0;
        m->status = 1;
        if (crc32(input, N) != m->input_crc) {
            m->error_code = 1;
            m->status = 3;
            continue;
        }
        uint32_t in_all = 0;
        for (; runs; runs--) {
            uint32_t before = *CYCLE_COUNTER;
            edgefront_run();
            edgefront_after_run();
            m->cycles = *CYCLE_COUNTER - before;
            in_all += m->cycles;
        }
        m->window_cycles_low = in_all;
        m->keeps_input = 1; /* nothing writes into it */
        m->output_crc = crc32(output, N) ^ (input[0] == BAD_CRC);
        m->stack_used_bytes = stack_used();
        rtt_write("run done: \xc3\xa4\n");
        m->sequence++;
        m->status = 2;
    }
}

__attribute__((used)) void start(void) {
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: switch the FPU on */
    volatile uint32_t *to = __data_start;
    for (uint32_t *from = __data_load; to < (volatile uint32_t *)__data_end;) *to++ = *from++;
    for (to = __bss_start; to < (volatile uint32_t *)__bss_end;) *to++ = 0;
    uint32_t here;
    for (volatile uint32_t *word = __edgefront_stack_bottom; (uint32_t *)word < &here - 16; word++) *word = 0xC5C5C5C5u;
    rtt_start();
    volatile struct mailbox *m = &edgefront_mailbox;
    for (int i = 0; i < 32; i++) m->image_id[i] = edgefront_image_id[i];
    m->version = 2;
    m->temperature_mdeg = INT32_MIN;
    m->input_address = (uint32_t)(uintptr_t)input;
    m->input_bytes = N;
    m->output_address = (uint32_t)(uintptr_t)output;
    m->output_bytes = N;
    m->stack_reserved_bytes = (uint32_t)((char *)__edgefront_stack_top - (char *)__edgefront_stack_bottom);
    *(volatile uint32_t *)0xE000EDFC |= 1u << 24; /* DEMCR: switch tracing on, then its counter */
    *CYCLE_COUNTER = 0;
    *(volatile uint32_t *)0xE0001000 |= 1;
    m->has_cycle_counter = *CYCLE_COUNTER != 0;
    m->magic = 0x45464D42;
    serve();
}

__attribute__((naked)) void Reset_Handler(void) { __asm volatile("b start"); }
__attribute__((section(".vectors"), used)) const void *const vectors[16] = {
    (void *)__edgefront_stack_top, (void *)Reset_Handler, (void *)edgefront_fault, (void *)edgefront_fault};
