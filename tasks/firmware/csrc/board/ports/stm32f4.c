/**
 * STM32F446 and its like (F42x, F43x, F446, F469): 180 MHz from HSI through the PLL, with the regulator's over-drive.
 *
 * source    RM0390 (STM32F446 reference manual): section 3.4.1 (flash wait states), 5.1.4 (entering over-drive mode),
 *           5.4 (PWR registers), 6.3 (RCC registers), 3.8.1 (FLASH_ACR)
 */
#include "stm32.h"

#define RCC_CR (*(volatile uint32_t *)0x40023800u)
#define RCC_PLLCFGR (*(volatile uint32_t *)0x40023804u)
#define RCC_CFGR (*(volatile uint32_t *)0x40023808u)
#define RCC_AHB1ENR (*(volatile uint32_t *)0x40023830u)
#define RCC_APB1ENR (*(volatile uint32_t *)0x40023840u)
#define PWR_CR (*(volatile uint32_t *)0x40007000u)
#define PWR_CSR (*(volatile uint32_t *)0x40007004u)
#define FLASH_ACR (*(volatile uint32_t *)0x40023C00u)
#define GPIOA 0x40020000u

#define RCC_CR_PLLON (1u << 24)
#define RCC_CR_PLLRDY (1u << 25)
#define RCC_PLLCFGR_MASK (0x3Fu | 0x1FFu << 6 | 3u << 16 | 1u << 22) /* M, N, P and the source; Q and R stay */
#define RCC_PLLCFGR_M(m) ((m) << 0)
#define RCC_PLLCFGR_N(n) ((n) << 6)
#define RCC_PLLCFGR_P_2 (0u << 16)
#define RCC_PLLCFGR_SRC_HSI (0u << 22)
#define RCC_CFGR_SW_PLL (2u << 0)
#define RCC_CFGR_SWS_MASK (3u << 2)
#define RCC_CFGR_SWS_PLL (2u << 2)
#define RCC_CFGR_PPRE1_4 (5u << 10) /* APB1: at most 45 MHz */
#define RCC_CFGR_PPRE2_2 (4u << 13) /* APB2: at most 90 MHz */
#define RCC_APB1ENR_PWREN (1u << 28)
#define PWR_CR_ODEN (1u << 16)
#define PWR_CR_ODSWEN (1u << 17)
#define PWR_CSR_ODRDY (1u << 16)
#define PWR_CSR_ODSWRDY (1u << 17)
#define FLASH_ACR_LATENCY_MASK 0xFu
#define FLASH_ACR_PRFTEN (1u << 8)
#define FLASH_ACR_ICEN (1u << 9)
#define FLASH_ACR_DCEN (1u << 10)

#define RESET_HZ 16000000u /* HSI */
#define PLL_HZ 180000000u  /* 16 MHz / 8 x 180 / 2 */
#define WAIT_STATES 5u     /* above 150 MHz, 2.7 V to 3.6 V */

uint32_t edgefront_port_init(void)
{
    stm32_trigger_pin(GPIOA, &RCC_AHB1ENR);
    RCC_APB1ENR |= RCC_APB1ENR_PWREN;
    (void)RCC_APB1ENR;
    const uint32_t kept = RCC_PLLCFGR & ~RCC_PLLCFGR_MASK;
    RCC_PLLCFGR = kept | RCC_PLLCFGR_SRC_HSI | RCC_PLLCFGR_M(8u) | RCC_PLLCFGR_N(180u) | RCC_PLLCFGR_P_2;
    RCC_CR |= RCC_CR_PLLON;
    PWR_CR |= PWR_CR_ODEN;
    if (!edgefront_port_wait(&PWR_CSR, PWR_CSR_ODRDY, PWR_CSR_ODRDY)) {
        return RESET_HZ;
    }
    PWR_CR |= PWR_CR_ODSWEN;
    FLASH_ACR = FLASH_ACR_DCEN | FLASH_ACR_ICEN | FLASH_ACR_PRFTEN | WAIT_STATES;
    if (!edgefront_port_wait(&PWR_CSR, PWR_CSR_ODSWRDY, PWR_CSR_ODSWRDY) ||
        !edgefront_port_wait(&FLASH_ACR, FLASH_ACR_LATENCY_MASK, WAIT_STATES) ||
        !edgefront_port_wait(&RCC_CR, RCC_CR_PLLRDY, RCC_CR_PLLRDY)) {
        return RESET_HZ;
    }
    RCC_CFGR = RCC_CFGR_PPRE1_4 | RCC_CFGR_PPRE2_2;
    RCC_CFGR |= RCC_CFGR_SW_PLL;
    if (!edgefront_port_wait(&RCC_CFGR, RCC_CFGR_SWS_MASK, RCC_CFGR_SWS_PLL)) {
        RCC_CFGR = 0;
        return RESET_HZ;
    }
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
