/**
 * What the nRF52 and nRF53 families share: tasks and events, and sleep by a real-time counter. SysTick would not do: it
 * stands still while the core sleeps.
 *
 * source    nRF52840 Product Specification v1.7: "RTC - Real-time counter", "CLOCK - Clock control", "GPIO"; the same
 *           blocks in nRF52832 v1.4 and nRF5340 v1.3.1. Armv7-M ARM B1.5.19 and B3.4 (WFI, NVIC)
 */
#ifndef EDGEFRONT_NRF_H
#define EDGEFRONT_NRF_H

#include "kind.h"
#include "port.h"

#define NRF(base, offset) (*(volatile uint32_t *)((base) + (offset)))

#define TASKS_HFCLKSTART 0x000u
#define TASKS_LFCLKSTART 0x008u
#define EVENTS_HFCLKSTARTED 0x100u
#define EVENTS_LFCLKSTARTED 0x104u
#define LFCLKSTAT 0x418u
#define LFCLKSTAT_STATE (1u << 16)
#define LFCLKSRC 0x518u
#define LFCLKSRC_RC 0u

#define RTC_TASKS_START 0x000u
#define RTC_TASKS_STOP 0x004u
#define RTC_TASKS_CLEAR 0x008u
#define RTC_EVENTS_COMPARE0 0x140u
#define RTC_INTENSET 0x304u
#define RTC_INTENCLR 0x308u
#define RTC_INTEN_COMPARE0 (1u << 16)
#define RTC_PRESCALER 0x508u
#define RTC_CC0 0x540u

#define NVIC_ISER0 (*(volatile uint32_t *)0xE000E100u)
#define NVIC_ICPR0 (*(volatile uint32_t *)0xE000E280u)

/** Start the low-frequency oscillator, whose source `low` is the part's RC, for the counter, and the crystal. Without
 * the crystal the core runs from the internal oscillator, at the same clock.
 *
 * returns   whether the crystal runs
 */
static inline uint32_t nrf_start_clocks(uintptr_t clock, uint32_t low)
{
    NRF(clock, LFCLKSRC) = low;
    NRF(clock, EVENTS_LFCLKSTARTED) = 0;
    NRF(clock, TASKS_LFCLKSTART) = 1;
    (void)edgefront_port_wait(&NRF(clock, EVENTS_LFCLKSTARTED), 1, 1);
    NRF(clock, EVENTS_HFCLKSTARTED) = 0;
    NRF(clock, TASKS_HFCLKSTART) = 1;
    return edgefront_port_wait(&NRF(clock, EVENTS_HFCLKSTARTED), 1, 1);
}

/** `interrupt`: the counter's number, below 32. Without its oscillator there is no sleep: nothing would end it. */
static inline void nrf_sleep(uintptr_t clock, uintptr_t rtc, uint32_t interrupt, uint32_t ms)
{
    if (!(NRF(clock, LFCLKSTAT) & LFCLKSTAT_STATE)) {
        return;
    }
    __asm volatile("cpsid i" ::: "memory");
    NRF(rtc, RTC_PRESCALER) = 0;
    NRF(rtc, RTC_CC0) = ms * 4096u / 125u; /* 32,768 a second; the counter has 24 bits, 512 s */
    NRF(rtc, RTC_EVENTS_COMPARE0) = 0;
    NRF(rtc, RTC_INTENSET) = RTC_INTEN_COMPARE0;
    NVIC_ISER0 = 1u << interrupt;
    NRF(rtc, RTC_TASKS_CLEAR) = 1;
    NRF(rtc, RTC_TASKS_START) = 1;
    while (!NRF(rtc, RTC_EVENTS_COMPARE0)) {
        __asm volatile("dsb\n\twfi" ::: "memory");
    }
    NRF(rtc, RTC_TASKS_STOP) = 1;
    NRF(rtc, RTC_INTENCLR) = RTC_INTEN_COMPARE0;
    NRF(rtc, RTC_EVENTS_COMPARE0) = 0;
    (void)NRF(rtc, RTC_EVENTS_COMPARE0); /* the event is gone from the bus before the interrupt is taken back */
    NVIC_ICPR0 = 1u << interrupt;
}

#endif
