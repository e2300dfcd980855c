/* ef_spread_s8 of ef_columns_s8.h for cores with the DSP extension: five instructions a word. */
#if defined(__ARM_FEATURE_DSP) && !defined(EF_PORTABLE)

    .syntax unified
    .thumb

#define STEP_BYTES 20
.macro step
    ldr.w   r3, [r0], #4
    sxtb16  r12, r3
    sxtb16  r3, r3, ror #8
    str.w   r3, [r2, #16]
    str.w   r12, [r2], #32
.endm

    .section .text.ef_spread_s8, "ax", %progbits
    .balign 4
    .global ef_spread_s8
    .thumb_func
    .type   ef_spread_s8, %function
ef_spread_s8:
    rsbs    r3, r1, #0
    and     r3, r3, #3              /* steps of the first turn that are left out */
    adds    r1, #3
    lsrs    r1, r1, #2
    adr     r12, 1f
    add     r3, r3, r3, lsl #2
    add     r12, r12, r3, lsl #2    /* STEP_BYTES = 4 * 5 */
    orr     r12, r12, #1
    bx      r12
    .balign 4
1:
    step
    step
    step
    step
    subs    r1, #1
    bne     1b
    bx      lr
    .size   ef_spread_s8, . - ef_spread_s8

#endif
