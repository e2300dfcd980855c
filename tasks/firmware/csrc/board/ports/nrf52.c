/**
 * nRF52832 and nRF52840: 64 MHz, the only clock the core has, from the crystal; DC/DC regulator and
 * instruction cache on. The debug port stays as open as the UICR says.
 *
 * source    nRF52832 Product Specification v1.4, nRF52840 Product Specification v1.7: "POWER", "NVMC", "TEMP", "Debug
 *           and trace" (access port protection, from build codes F0 and G0 on); errata 66 of both (TEMP calibration)
 */
#include "nrf.h"

#define CLOCK 0x40000000u
#define POWER 0x40000000u
#define RTC0 0x4000B000u
#define RTC0_INTERRUPT 11u
#define TEMP 0x4000C000u
#define NVMC 0x4001E000u
#define FICR 0x10000000u
#define UICR 0x10001000u
#define GPIO (0x50000000u + 0x300u * EDGEFRONT_TRIGGER_PORT)

#define APPROTECT_DISABLE 0x558u
#define POWER_DCDCEN 0x578u
#define NVMC_ICACHECNF 0x540u
#define NVMC_ICACHECNF_CACHEEN 1u
#define FICR_INFO_VARIANT 0x104u
#define FICR_TEMP_A0 0x404u
#define UICR_APPROTECT 0x208u
#define GPIO_OUTSET 0x508u
#define GPIO_OUTCLR 0x50Cu
#define GPIO_DIRSET 0x518u
#define TEMP_TASKS_START 0x000u
#define TEMP_TASKS_STOP 0x004u
#define TEMP_EVENTS_DATARDY 0x100u
#define TEMP_TEMP 0x508u
#define TEMP_A0 0x520u
#define TEMP_WORDS 17u /* A0 to A5, B0 to B5, T0 to T4; in TEMP each group starts 32 bytes after the one before */

#define CORE_HZ 64000000u

uint32_t edgefront_port_init(void)
{
    if ((NRF(FICR, FICR_INFO_VARIANT) >> 8 & 0xFFu) >= 'F') {
        NRF(POWER, APPROTECT_DISABLE) = NRF(UICR, UICR_APPROTECT);
    }
    NRF(GPIO, GPIO_OUTCLR) = 1u << EDGEFRONT_TRIGGER_PIN;
    NRF(GPIO, GPIO_DIRSET) = 1u << EDGEFRONT_TRIGGER_PIN;
    NRF(POWER, POWER_DCDCEN) = 1;
    NRF(NVMC, NVMC_ICACHECNF) = NVMC_ICACHECNF_CACHEEN;
    (void)nrf_start_clocks(CLOCK, LFCLKSRC_RC);
    for (uint32_t i = 0; i < TEMP_WORDS; ++i) {
        NRF(TEMP, TEMP_A0 + 32u * (i / 6u) + 4u * (i % 6u)) = NRF(FICR, FICR_TEMP_A0 + 4u * i);
    }
    return CORE_HZ;
}

void edgefront_port_cache(uint32_t is_on)
{
    (void)is_on; /* the cache holds flash alone */
}

void edgefront_port_trigger(uint32_t is_high)
{
    NRF(GPIO, is_high ? GPIO_OUTSET : GPIO_OUTCLR) = 1u << EDGEFRONT_TRIGGER_PIN;
}

void edgefront_port_sleep(uint32_t clock_hz, uint32_t ms)
{
    (void)clock_hz;
    nrf_sleep(CLOCK, RTC0, RTC0_INTERRUPT, ms);
}

int32_t edgefront_port_temperature(void)
{
    NRF(TEMP, TEMP_EVENTS_DATARDY) = 0;
    NRF(TEMP, TEMP_TASKS_START) = 1;
    const uint32_t is_ready = edgefront_port_wait(&NRF(TEMP, TEMP_EVENTS_DATARDY), 1, 1);
    const int32_t quarters = (int32_t)NRF(TEMP, TEMP_TEMP);
    NRF(TEMP, TEMP_TASKS_STOP) = 1;
    return is_ready ? 250 * quarters : INT32_MIN;
}
