/**
 * What a family of microcontrollers does in its own way: clocks, caches, a pin, sleep and a thermometer. One file a
 * family implements all of it; it is compiled as board/port.c.
 *
 * waits     every one is bounded. Where an oscillator or a PLL never becomes ready, the core goes on at the clock it
 *           has after reset.
 * calls     edgefront_port_init first, once, before the cycle counter starts; none of them where
 *           edgefront_has_peripherals is 0.
 */
#ifndef EDGEFRONT_PORT_H
#define EDGEFRONT_PORT_H

#include <stdint.h>

/** Set the core's clock, flash wait states and caches up, and make the trigger pin a low output.
 *
 * returns   the core's clock in hertz that is in effect; 0: unknown
 */
uint32_t edgefront_port_init(void);

/** Switch the cache for data in RAM on (1), or write it back and switch it off (0), so that a debugger sees what the
 * core sees. Nothing where the part has no such cache. */
void edgefront_port_cache(uint32_t is_on);

/** Set the trigger pin high (1) or low (0). */
void edgefront_port_trigger(uint32_t is_high);

/** Sleep, with the core's clock stopped and the clocks of edgefront_port_init running on.
 *
 * range     clock_hz what edgefront_port_init returned; ms 1..EDGEFRONT_LONGEST_IDLE_MS
 * interrupts are masked from the first call on; what wakes the core is taken back before the return
 */
void edgefront_port_sleep(uint32_t clock_hz, uint32_t ms);

/** The core's temperature in thousandths of a degree Celsius; INT32_MIN where it is not measured. */
int32_t edgefront_port_temperature(void);

/** 5 ms or more at 64 MHz, 0.1 s at 4 MHz: oscillators and PLLs of these parts take at most 3 ms. */
#define EDGEFRONT_PORT_READS 50000u

/** Read a register until the bits of `mask` have `value`; 1, or 0 when they never had it. */
static inline uint32_t edgefront_port_wait(const volatile uint32_t *word, uint32_t mask, uint32_t value)
{
    for (uint32_t reads = 0; reads < EDGEFRONT_PORT_READS; ++reads) {
        if ((*word & mask) == value) {
            return 1;
        }
    }
    return 0;
}

#endif
