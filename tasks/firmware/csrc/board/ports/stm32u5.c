/**
 * STM32U575 and its like with the step-down converter wired up ("-Q" boards), TrustZone off: 160 MHz from HSI16 through
 * PLL1, voltage range 1 with the EPOD booster; instruction cache on.
 *
 * source    RM0456 (STM32U5 reference manual): section 7.3.3 (flash wait states), 8.3 (ICACHE), 10.5.4 (voltage
 *           scaling, booster), 10.10 (PWR registers), 11.4 and 11.8 (RCC)
 */
#include "stm32.h"

#define RCC_CR (*(volatile uint32_t *)0x46020C00u)
#define RCC_CFGR1 (*(volatile uint32_t *)0x46020C1Cu)
#define RCC_CFGR2 (*(volatile uint32_t *)0x46020C20u)
#define RCC_PLL1CFGR (*(volatile uint32_t *)0x46020C28u)
#define RCC_PLL1DIVR (*(volatile uint32_t *)0x46020C34u)
#define RCC_AHB2ENR1 (*(volatile uint32_t *)0x46020C8Cu)
#define RCC_AHB3ENR (*(volatile uint32_t *)0x46020C94u)
#define PWR_CR3 (*(volatile uint32_t *)0x46020808u)
#define PWR_VOSR (*(volatile uint32_t *)0x4602080Cu)
#define PWR_SVMSR (*(volatile uint32_t *)0x4602083Cu)
#define FLASH_ACR (*(volatile uint32_t *)0x40022000u)
#define ICACHE_CR (*(volatile uint32_t *)0x40030400u)
#define ICACHE_SR (*(volatile uint32_t *)0x40030404u)
#define GPIOA 0x42020000u

#define RCC_CR_HSION (1u << 8)
#define RCC_CR_HSIRDY (1u << 10)
#define RCC_CR_PLL1ON (1u << 24)
#define RCC_CR_PLL1RDY (1u << 25)
#define RCC_CFGR1_SW_PLL1 (3u << 0)
#define RCC_CFGR1_SWS_MASK (3u << 2)
#define RCC_CFGR1_SWS_PLL1 (3u << 2)
#define RCC_CFGR2_HPRE_2 (8u << 0)
#define RCC_PLL1CFGR_SRC_HSI16 (2u << 0)
#define RCC_PLL1CFGR_RGE_8_16 (3u << 2)
#define RCC_PLL1CFGR_M(m) (((m) - 1u) << 8)
#define RCC_PLL1CFGR_MBOOST_1 (0u << 12) /* the booster runs from 16 MHz undivided; 4 MHz to 16 MHz are allowed */
#define RCC_PLL1CFGR_REN (1u << 18)
#define RCC_PLL1DIVR_N(n) (((n) - 1u) << 0)
#define RCC_PLL1DIVR_P(p) (((p) - 1u) << 9)
#define RCC_PLL1DIVR_Q(q) (((q) - 1u) << 16)
#define RCC_PLL1DIVR_R(r) (((r) - 1u) << 24)
#define RCC_AHB3ENR_PWREN (1u << 2)
#define PWR_CR3_REGSEL_SMPS (1u << 1)
#define PWR_VOSR_BOOSTRDY (1u << 14)
#define PWR_VOSR_VOSRDY (1u << 15)
#define PWR_VOSR_VOS_RANGE_1 (3u << 16)
#define PWR_VOSR_BOOSTEN (1u << 18)
#define PWR_SVMSR_REGS_SMPS (1u << 1)
#define FLASH_ACR_LATENCY_MASK 0xFu
#define FLASH_ACR_PRFTEN (1u << 8)
#define ICACHE_CR_EN (1u << 0)
#define ICACHE_SR_BUSYF (1u << 0)

#define RESET_HZ 4000000u /* MSIS */
#define PLL_HZ 160000000u /* 16 MHz x 20 / 2 */
#define WAIT_STATES 4u    /* above 128 MHz, range 1 */

/** The converter, range 1 and the booster, which takes its clock from the source that PLL1CFGR names. */
static uint32_t raise_voltage(void)
{
    PWR_CR3 |= PWR_CR3_REGSEL_SMPS;
    if (!edgefront_port_wait(&PWR_SVMSR, PWR_SVMSR_REGS_SMPS, PWR_SVMSR_REGS_SMPS)) {
        return 0;
    }
    PWR_VOSR = PWR_VOSR_VOS_RANGE_1;
    if (!edgefront_port_wait(&PWR_VOSR, PWR_VOSR_VOSRDY, PWR_VOSR_VOSRDY)) {
        return 0;
    }
    PWR_VOSR |= PWR_VOSR_BOOSTEN;
    return edgefront_port_wait(&PWR_VOSR, PWR_VOSR_BOOSTRDY, PWR_VOSR_BOOSTRDY);
}

uint32_t edgefront_port_init(void)
{
    stm32_trigger_pin(GPIOA, &RCC_AHB2ENR1);
    if (edgefront_port_wait(&ICACHE_SR, ICACHE_SR_BUSYF, 0)) {
        ICACHE_CR |= ICACHE_CR_EN;
    }
    RCC_AHB3ENR |= RCC_AHB3ENR_PWREN;
    (void)RCC_AHB3ENR;
    RCC_CR |= RCC_CR_HSION;
    if (!edgefront_port_wait(&RCC_CR, RCC_CR_HSIRDY, RCC_CR_HSIRDY)) {
        return RESET_HZ;
    }
    RCC_PLL1CFGR =
        RCC_PLL1CFGR_SRC_HSI16 | RCC_PLL1CFGR_RGE_8_16 | RCC_PLL1CFGR_M(1u) | RCC_PLL1CFGR_MBOOST_1 | RCC_PLL1CFGR_REN;
    RCC_PLL1DIVR = RCC_PLL1DIVR_N(20u) | RCC_PLL1DIVR_P(2u) | RCC_PLL1DIVR_Q(2u) | RCC_PLL1DIVR_R(2u);
    if (!raise_voltage()) {
        return RESET_HZ;
    }
    FLASH_ACR = FLASH_ACR_PRFTEN | WAIT_STATES;
    RCC_CR |= RCC_CR_PLL1ON;
    if (!edgefront_port_wait(&FLASH_ACR, FLASH_ACR_LATENCY_MASK, WAIT_STATES) ||
        !edgefront_port_wait(&RCC_CR, RCC_CR_PLL1RDY, RCC_CR_PLL1RDY)) {
        return RESET_HZ;
    }
    RCC_CFGR2 = RCC_CFGR2_HPRE_2; /* half speed for the moment of the switch */
    RCC_CFGR1 = RCC_CFGR1_SW_PLL1;
    if (!edgefront_port_wait(&RCC_CFGR1, RCC_CFGR1_SWS_MASK, RCC_CFGR1_SWS_PLL1)) {
        RCC_CFGR1 = 0;
        RCC_CFGR2 = 0;
        return RESET_HZ;
    }
    RCC_CFGR2 = 0;
    return PLL_HZ;
}

void edgefront_port_cache(uint32_t is_on)
{
    (void)is_on; /* ICACHE holds flash alone, and DCACHE1 external memories */
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
