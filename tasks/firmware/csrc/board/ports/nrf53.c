/**
 * nRF5340, application core: 128 MHz from the crystal; DC/DC regulator and cache on. The core starts in the secure
 * state, so peripherals are named by their secure addresses. The debug port stays as open as the UICR says. The part's
 * thermometer belongs to the network core.
 *
 * source    nRF5340 Product Specification v1.3.1: "CLOCK" (HFCLKCTRL), "CACHE", "REGULATORS", "CTRL-AP", "UICR", "GPIO"
 */
#include "nrf.h"

#define CACHE 0x50001000u
#define REGULATORS 0x50004000u
#define CLOCK 0x50005000u
#define CTRLAP 0x50006000u
#define RTC0 0x50014000u
#define RTC0_INTERRUPT 20u
#define UICR 0x00FF8000u
#define GPIO (0x50842500u + 0x300u * EDGEFRONT_TRIGGER_PORT)

#define CACHE_ENABLE 0x500u
#define REGULATORS_VREGMAIN_DCDCEN 0x704u
#define CLOCK_HFCLKCTRL 0x558u
#define CLOCK_HFCLKCTRL_DIV1 0u
#define CTRLAP_APPROTECT_DISABLE 0x544u
#define CTRLAP_SECUREAPPROTECT_DISABLE 0x54Cu
#define UICR_APPROTECT 0x000u
#define UICR_SECUREAPPROTECT 0x01Cu
#define LFCLKSRC_LFRC 1u
#define GPIO_OUTSET 0x008u
#define GPIO_OUTCLR 0x00Cu
#define GPIO_DIRSET 0x018u

#define RESET_HZ 64000000u
#define FULL_HZ 128000000u

uint32_t edgefront_port_init(void)
{
    NRF(CTRLAP, CTRLAP_APPROTECT_DISABLE) = NRF(UICR, UICR_APPROTECT);
    NRF(CTRLAP, CTRLAP_SECUREAPPROTECT_DISABLE) = NRF(UICR, UICR_SECUREAPPROTECT);
    NRF(GPIO, GPIO_OUTCLR) = 1u << EDGEFRONT_TRIGGER_PIN;
    NRF(GPIO, GPIO_DIRSET) = 1u << EDGEFRONT_TRIGGER_PIN;
    NRF(REGULATORS, REGULATORS_VREGMAIN_DCDCEN) = 1;
    NRF(CACHE, CACHE_ENABLE) = 1;
    if (!nrf_start_clocks(CLOCK, LFCLKSRC_LFRC)) {
        return RESET_HZ;
    }
    NRF(CLOCK, CLOCK_HFCLKCTRL) = CLOCK_HFCLKCTRL_DIV1;
    return NRF(CLOCK, CLOCK_HFCLKCTRL) == CLOCK_HFCLKCTRL_DIV1 ? FULL_HZ : RESET_HZ;
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
    return INT32_MIN;
}
