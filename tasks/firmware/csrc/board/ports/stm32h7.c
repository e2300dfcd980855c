/**
 * STM32H743 and its like, supplied through the LDO: 480 MHz in voltage scale 0 on silicon of revision V, 400 MHz in
 * scale 1 on earlier ones, from HSI through PLL1; instruction cache on.
 *
 * The data cache is on during inferences only: a debugger reads and writes the RAM behind it.
 *
 * source    RM0433 (STM32H743 reference manual): table 17 (flash wait states), section 6.4.1 (system supply start-up),
 *           6.6.2 (voltage scaling, scale 0), 6.8 (PWR registers), 8.7 (RCC registers), 12.3.14 (SYSCFG_PWRCR),
 *           60.5.8 (DBGMCU_IDC); Armv7-M ARM B2.2 (cache maintenance)
 */
#include "stm32.h"

#define RCC_CR (*(volatile uint32_t *)0x58024400u)
#define RCC_CFGR (*(volatile uint32_t *)0x58024410u)
#define RCC_D1CFGR (*(volatile uint32_t *)0x58024418u)
#define RCC_D2CFGR (*(volatile uint32_t *)0x5802441Cu)
#define RCC_D3CFGR (*(volatile uint32_t *)0x58024420u)
#define RCC_PLLCKSELR (*(volatile uint32_t *)0x58024428u)
#define RCC_PLLCFGR (*(volatile uint32_t *)0x5802442Cu)
#define RCC_PLL1DIVR (*(volatile uint32_t *)0x58024430u)
#define RCC_AHB4ENR (*(volatile uint32_t *)0x580244E0u)
#define RCC_APB4ENR (*(volatile uint32_t *)0x580244F4u)
#define PWR_CSR1 (*(volatile uint32_t *)0x58024804u)
#define PWR_CR3 (*(volatile uint32_t *)0x5802480Cu)
#define PWR_D3CR (*(volatile uint32_t *)0x58024818u)
#define SYSCFG_PWRCR (*(volatile uint32_t *)0x5800042Cu)
#define FLASH_ACR (*(volatile uint32_t *)0x52002000u)
#define DBGMCU_IDC (*(volatile uint32_t *)0x5C001000u)
#define GPIOA 0x58020000u
#define SCB_CCR (*(volatile uint32_t *)0xE000ED14u)
#define SCB_ICIALLU (*(volatile uint32_t *)0xE000EF50u)
#define SCB_DCISW (*(volatile uint32_t *)0xE000EF60u)
#define SCB_DCCISW (*(volatile uint32_t *)0xE000EF74u)

#define RCC_CR_PLL1ON (1u << 24)
#define RCC_CR_PLL1RDY (1u << 25)
#define RCC_CFGR_SW_PLL1 (3u << 0)
#define RCC_CFGR_SWS_MASK (7u << 3)
#define RCC_CFGR_SWS_PLL1 (3u << 3)
#define RCC_D1CFGR_HPRE_2 (8u << 0) /* the AXI and AHB buses: at most 240 MHz */
#define RCC_D1CFGR_D1PPRE_2 (4u << 4)
#define RCC_D2CFGR_D2PPRE1_2 (4u << 4)
#define RCC_D2CFGR_D2PPRE2_2 (4u << 8)
#define RCC_D3CFGR_D3PPRE_2 (4u << 4)
#define RCC_PLLCKSELR_SRC_HSI (0u << 0)
#define RCC_PLLCKSELR_DIVM1(m) ((m) << 4)
#define RCC_PLLCFGR_PLL1RGE_8_16 (3u << 2) /* and VCOSEL 0: the wide range of the oscillator */
#define RCC_PLLCFGR_DIVP1EN (1u << 16)
#define RCC_PLL1DIVR_N(n) (((n) - 1u) << 0)
#define RCC_PLL1DIVR_P(p) (((p) - 1u) << 9)
#define RCC_PLL1DIVR_Q(q) (((q) - 1u) << 16)
#define RCC_PLL1DIVR_R(r) (((r) - 1u) << 24)
#define RCC_APB4ENR_SYSCFGEN (1u << 1)
#define PWR_CSR1_ACTVOSRDY (1u << 13)
#define PWR_CR3_LDOEN (1u << 1)
#define PWR_D3CR_VOSRDY (1u << 13)
#define PWR_D3CR_VOS_1 (3u << 14)
#define SYSCFG_PWRCR_ODEN (1u << 0)
#define FLASH_ACR_MASK 0x3Fu
#define FLASH_ACR_WRHIGHFREQ(f) ((f) << 4)
#define DBGMCU_IDC_REV_V 0x2003u
#define SCB_CCR_DC (1u << 16)
#define SCB_CCR_IC (1u << 17)

#define RESET_HZ 64000000u       /* HSI */
#define SCALE_0_HZ 480000000u    /* 64 MHz / 4 x 60 / 2 */
#define SCALE_1_HZ 400000000u    /* 64 MHz / 4 x 50 / 2 */
#define SCALE_0_WAIT_STATES 4u   /* AXI at 240 MHz */
#define SCALE_1_WAIT_STATES 2u   /* AXI at 200 MHz */
#define CACHE_SETS 128u          /* 16 Kbyte: 4 ways of 128 lines of 32 bytes */

/** Voltage scale 1, and 0 on top where `is_scale_0`. PWR_CR3 can be written once after power-on: it ends Run* mode. */
static uint32_t raise_voltage(uint32_t is_scale_0)
{
    PWR_CR3 = PWR_CR3_LDOEN;
    if (!edgefront_port_wait(&PWR_CSR1, PWR_CSR1_ACTVOSRDY, PWR_CSR1_ACTVOSRDY)) {
        return 0;
    }
    PWR_D3CR = PWR_D3CR_VOS_1;
    if (!edgefront_port_wait(&PWR_D3CR, PWR_D3CR_VOSRDY, PWR_D3CR_VOSRDY)) {
        return 0;
    }
    if (!is_scale_0) {
        return 1;
    }
    RCC_APB4ENR |= RCC_APB4ENR_SYSCFGEN;
    (void)RCC_APB4ENR;
    SYSCFG_PWRCR |= SYSCFG_PWRCR_ODEN;
    return edgefront_port_wait(&PWR_D3CR, PWR_D3CR_VOSRDY, PWR_D3CR_VOSRDY);
}

static uint32_t start_pll(uint32_t multiplier, uint32_t acr)
{
    FLASH_ACR = acr;
    RCC_PLLCKSELR = RCC_PLLCKSELR_SRC_HSI | RCC_PLLCKSELR_DIVM1(4u);
    RCC_PLLCFGR = RCC_PLLCFGR_PLL1RGE_8_16 | RCC_PLLCFGR_DIVP1EN;
    RCC_PLL1DIVR = RCC_PLL1DIVR_N(multiplier) | RCC_PLL1DIVR_P(2u) | RCC_PLL1DIVR_Q(2u) | RCC_PLL1DIVR_R(2u);
    RCC_CR |= RCC_CR_PLL1ON;
    if (!edgefront_port_wait(&FLASH_ACR, FLASH_ACR_MASK, acr) ||
        !edgefront_port_wait(&RCC_CR, RCC_CR_PLL1RDY, RCC_CR_PLL1RDY)) {
        return 0;
    }
    RCC_D1CFGR = RCC_D1CFGR_HPRE_2 | RCC_D1CFGR_D1PPRE_2;
    RCC_D2CFGR = RCC_D2CFGR_D2PPRE1_2 | RCC_D2CFGR_D2PPRE2_2;
    RCC_D3CFGR = RCC_D3CFGR_D3PPRE_2;
    RCC_CFGR = RCC_CFGR_SW_PLL1;
    return edgefront_port_wait(&RCC_CFGR, RCC_CFGR_SWS_MASK, RCC_CFGR_SWS_PLL1);
}

uint32_t edgefront_port_init(void)
{
    stm32_trigger_pin(GPIOA, &RCC_AHB4ENR);
    SCB_ICIALLU = 0;
    __asm volatile("dsb\n\tisb" ::: "memory");
    SCB_CCR |= SCB_CCR_IC;
    __asm volatile("dsb\n\tisb" ::: "memory");
    const uint32_t is_scale_0 = DBGMCU_IDC >> 16 >= DBGMCU_IDC_REV_V;
    const uint32_t acr = FLASH_ACR_WRHIGHFREQ(2u) | (is_scale_0 ? SCALE_0_WAIT_STATES : SCALE_1_WAIT_STATES);
    if (!raise_voltage(is_scale_0) || !start_pll(is_scale_0 ? 60u : 50u, acr)) {
        RCC_CFGR = 0;
        RCC_D1CFGR = 0;
        return RESET_HZ;
    }
    return is_scale_0 ? SCALE_0_HZ : SCALE_1_HZ;
}

/** While it is off and not yet written back, nothing but registers may be read: the loop has no variables in memory. */
void edgefront_port_cache(uint32_t is_on)
{
    volatile uint32_t *const maintain = is_on ? &SCB_DCISW : &SCB_DCCISW;
    if (!is_on && !(SCB_CCR & SCB_CCR_DC)) {
        return; /* what it holds is rubbish: it must not be written back */
    }
    __asm volatile("dsb" ::: "memory");
    if (!is_on) {
        SCB_CCR &= ~SCB_CCR_DC;
        __asm volatile("dsb" ::: "memory");
    }
    for (uint32_t line = 0; line < 4u * CACHE_SETS; ++line) {
        *maintain = (line & 3u) << 30 | (line >> 2) << 5; /* way and set */
    }
    __asm volatile("dsb" ::: "memory");
    if (is_on) {
        SCB_CCR |= SCB_CCR_DC;
    }
    __asm volatile("dsb\n\tisb" ::: "memory");
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
