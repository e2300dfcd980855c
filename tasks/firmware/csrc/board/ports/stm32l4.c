/**
 * STM32L4R5 and its like (L4+): 120 MHz from HSI16 through the PLL, voltage range 1 in boost mode.
 *
 * source    RM0432 (STM32L4+ reference manual): section 3.3.3 (flash wait states), 5.1.8 (dynamic voltage scaling),
 *           5.4.18 (PWR_CR5), 6.4 (RCC registers), 3.7.1 (FLASH_ACR)
 */
#include "stm32.h"

#define RCC_CR (*(volatile uint32_t *)0x40021000u)
#define RCC_CFGR (*(volatile uint32_t *)0x40021008u)
#define RCC_PLLCFGR (*(volatile uint32_t *)0x4002100Cu)
#define RCC_AHB2ENR (*(volatile uint32_t *)0x4002104Cu)
#define RCC_APB1ENR1 (*(volatile uint32_t *)0x40021058u)
#define PWR_CR5 (*(volatile uint32_t *)0x40007080u)
#define FLASH_ACR (*(volatile uint32_t *)0x40022000u)
#define GPIOA 0x48000000u

#define RCC_CR_HSION (1u << 8)
#define RCC_CR_HSIRDY (1u << 10)
#define RCC_CR_PLLON (1u << 24)
#define RCC_CR_PLLRDY (1u << 25)
#define RCC_CFGR_SW_PLL (3u << 0)
#define RCC_CFGR_SWS_MASK (3u << 2)
#define RCC_CFGR_SWS_PLL (3u << 2)
#define RCC_CFGR_HPRE_2 (8u << 4)
#define RCC_PLLCFGR_SRC_HSI16 (2u << 0)
#define RCC_PLLCFGR_M(m) (((m) - 1u) << 4)
#define RCC_PLLCFGR_N(n) ((n) << 8)
#define RCC_PLLCFGR_REN (1u << 24)
#define RCC_PLLCFGR_R_2 (0u << 25)
#define RCC_APB1ENR1_PWREN (1u << 28)
#define PWR_CR5_R1MODE (1u << 8)
#define FLASH_ACR_LATENCY_MASK 0xFu
#define FLASH_ACR_PRFTEN (1u << 8)
#define FLASH_ACR_ICEN (1u << 9)
#define FLASH_ACR_DCEN (1u << 10)

#define RESET_HZ 4000000u /* MSI */
#define PLL_HZ 120000000u /* 16 MHz / 2 x 30 / 2 */
#define WAIT_STATES 5u    /* above 100 MHz, range 1 boost */

uint32_t edgefront_port_init(void)
{
    stm32_trigger_pin(GPIOA, &RCC_AHB2ENR);
    RCC_APB1ENR1 |= RCC_APB1ENR1_PWREN;
    (void)RCC_APB1ENR1;
    PWR_CR5 &= ~PWR_CR5_R1MODE;
    FLASH_ACR = FLASH_ACR_DCEN | FLASH_ACR_ICEN | FLASH_ACR_PRFTEN | WAIT_STATES;
    RCC_CR |= RCC_CR_HSION;
    if (!edgefront_port_wait(&FLASH_ACR, FLASH_ACR_LATENCY_MASK, WAIT_STATES) ||
        !edgefront_port_wait(&RCC_CR, RCC_CR_HSIRDY, RCC_CR_HSIRDY)) {
        return RESET_HZ;
    }
    RCC_PLLCFGR = RCC_PLLCFGR_SRC_HSI16 | RCC_PLLCFGR_M(2u) | RCC_PLLCFGR_N(30u) | RCC_PLLCFGR_REN | RCC_PLLCFGR_R_2;
    RCC_CR |= RCC_CR_PLLON;
    if (!edgefront_port_wait(&RCC_CR, RCC_CR_PLLRDY, RCC_CR_PLLRDY)) {
        return RESET_HZ;
    }
    /* Beyond 80 MHz the bus runs at half for the first microsecond. */
    RCC_CFGR = RCC_CFGR_HPRE_2 | RCC_CFGR_SW_PLL;
    if (!edgefront_port_wait(&RCC_CFGR, RCC_CFGR_SWS_MASK, RCC_CFGR_SWS_PLL)) {
        RCC_CFGR = 0;
        return RESET_HZ;
    }
    for (volatile uint32_t turns = 0; turns < 30u; ++turns) { /* at 60 MHz, four cycles a turn or more */
    }
    RCC_CFGR = RCC_CFGR_SW_PLL;
    return PLL_HZ;
}

void edgefront_port_cache(uint32_t is_on)
{
    (void)is_on; /* the caches of the flash interface hold nothing that lies in RAM */
}

void edgefront_port_trigger(uint32_t is_high)
{
    stm32_trigger(GPIOA, is_high);
}

void edgefront_port_sleep(uint32_t clock_hz, uint32_t ms)
{
    stm32_sleep(clock_hz, ms);
}

int32_t edgefront_port_temperature(void)
{
    return INT32_MIN;
}
