/**
 * The mailbox: a record in RAM through which a debugger or an emulator runs the network. All fields are little-endian
 * 32-bit words; the host finds the record by its symbol, `edgefront_mailbox`.
 *
 * order     the firmware sets `magic` and waits in edgefront_ready() with status 0. The host writes the input bytes to
 *           `input_address`, their CRC to `input_crc` and a command to `command`. The firmware clears `command`, sets
 *           status 1, does it, fills in the results, adds 1 to `sequence`, and sets status 2, or 3 and `error_code`.
 * run       one inference.
 * window    what an energy meter needs: sleep `idle_ms`, the trigger pin high, `repeats` inferences, the trigger pin
 *           low, sleep `idle_ms`. An inference may overwrite its input: where the RAM behind the variables has room for
 *           a copy, the input is put back before every inference and `keeps_input` is 1.
 * crc       CRC-32 as in zlib (polynomial 0xEDB88320, reflected, inverted before and after)
 */
#ifndef EDGEFRONT_MAILBOX_H
#define EDGEFRONT_MAILBOX_H

#include <stdint.h>

#define EDGEFRONT_MAGIC 0x45464D42u
#define EDGEFRONT_MAILBOX_VERSION 2u
#define EDGEFRONT_LONGEST_IDLE_MS 60000u

enum { EDGEFRONT_COMMAND_RUN = 1, EDGEFRONT_COMMAND_WINDOW = 2 };
enum { EDGEFRONT_READY = 0, EDGEFRONT_RUNNING = 1, EDGEFRONT_DONE = 2, EDGEFRONT_ERROR = 3 };
/** error_code: the command is unknown, the input's CRC is wrong, a window has no repeats or too long an idle time, or
 * EDGEFRONT_ERROR_FAULT + the exception's number. */
enum {
    EDGEFRONT_ERROR_COMMAND = 1,
    EDGEFRONT_ERROR_CRC = 2,
    EDGEFRONT_ERROR_WINDOW = 3,
    EDGEFRONT_ERROR_FAULT = 0x100,
};

typedef struct {
    uint32_t magic;
    uint32_t version;
    uint8_t image_id[32];
    uint32_t command;
    uint32_t status;
    uint32_t error_code;
    uint32_t input_address;
    uint32_t input_bytes;
    uint32_t output_address;
    uint32_t output_bytes;
    uint32_t input_crc;
    uint32_t output_crc;
    uint32_t sequence;
    uint32_t has_cycle_counter;
    uint32_t cycles;
    uint32_t stack_reserved_bytes;
    uint32_t stack_used_bytes;
    uint32_t repeats;
    uint32_t idle_ms;
    uint32_t window_cycles_low; /* of the window's inferences, without what lies between them */
    uint32_t window_cycles_high;
    uint32_t clock_hz;        /* of the core, as it was set up; 0: unknown */
    int32_t temperature_mdeg; /* of the core, in thousandths of a degree Celsius; INT32_MIN: not measured */
    uint32_t keeps_input;
} edgefront_mailbox_t;

extern volatile edgefront_mailbox_t edgefront_mailbox;
extern const uint8_t edgefront_image_id[32];

/** 1; an emulator that has no peripherals writes 0 over it in its copy of the flash, and the port is left alone. */
extern const uint32_t edgefront_has_peripherals;

/** Linker symbols: only their addresses mean something. The stack lies at the bottom of RAM. */
extern uint32_t __edgefront_stack_bottom[];
extern uint32_t __edgefront_stack_top[];
extern uint32_t __edgefront_bss_end[];
extern uint32_t __edgefront_ram_end[];

#define EDGEFRONT_STACK_PAINT 0xA5C35A3Cu

int edgefront_main(void);

/** Whether the board's port may touch its peripherals; read from memory each time, whatever the compiler knows. */
static inline uint32_t edgefront_may_use_peripherals(void)
{
    return *(const volatile uint32_t *)&edgefront_has_peripherals;
}

#endif
