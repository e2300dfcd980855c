/*
 * The functions of ef_dense_s8.h for cores with the DSP extension. Four inputs of four outputs:
 *
 *     1 LDM of weights, 1 LDR of input, 10 SXTB16, 8 SMLAD: 20 instructions for 16 products.
 */
#include "ef_options.h"

#if defined(__ARM_FEATURE_DSP) && !defined(EF_PORTABLE)

    .syntax unified
    .thumb

/* r3 and r12 become the input's even and odd bytes. */
.macro input
    ldr.w   r3, [r1], #4
    sxtb16  r12, r3, ror #8
    sxtb16  r3, r3
.endm

.macro product sum, weight
    sxtb16  lr, \weight
    smlad   \sum, lr, r3, \sum
    sxtb16  \weight, \weight, ror #8
    smlad   \sum, \weight, r12, \sum
.endm

#define STEP_BYTES_4 80
.macro step4
    ldmia.w r0!, {r8-r11}
    input
    product r4, r8
    product r5, r9
    product r6, r10
    product r7, r11
.endm

#define STEP_BYTES_2 48
.macro step2
    ldrd    r8, r9, [r0], #8
    input
    product r4, r8
    product r5, r9
.endm

#define STEP_BYTES_1 32
.macro step1
    ldr.w   r8, [r0], #4
    input
    product r4, r8
.endm

.macro tail sums:vararg
    ldrsb   r3, [r1], #1
    .irp    sum, \sums
    ldrsb   r12, [r2], #1
    smlabb  \sum, r3, r12, \sum
    .endr
.endm

/* The stack. */
#define AT_IN 0
#define AT_LEFT 4
#define AT_TAILS 8
#define AT_REQUANT 12
#define AT_OUT 16
#define AT_LAYER 20
#define FRAME 24

/* ef_dense_t */
#define N_STEPS 16
#define N_TAILS 20
#define ZERO_POINT 24
#define LEFT_SHIFT 28
#define BOUNDS 32

.macro byte sum, multiplier, is_wide
.if \is_wide
    lsl     \sum, \sum, r3
.endif
    smmlar  \sum, \sum, \multiplier, r12
.if \is_wide
    cmp     \sum, r0
    it      lt
    movlt   \sum, r0
    cmp     \sum, r1
    it      gt
    movgt   \sum, r1
.else
    ssat    \sum, #8, \sum
.endif
    strb    \sum, [r2], #1
.endm

/* A group of outputs. Loops are unrolled four times and entered where the rest is a multiple of four. */
.macro group width, step_bytes, is_wide, sums:vararg
    ldr     r2, [sp, #AT_REQUANT]
    ldmia   r2!, {\sums}
    str     r2, [sp, #AT_REQUANT]
    ldr     r8, [sp, #AT_LAYER]
    ldr     r1, [sp, #AT_IN]
    ldr     r2, [r8, #N_STEPS]
    cmp     r2, #0
    beq     2f
#if !EF_SMALL
    rsbs    r3, r2, #0
    and     r3, r3, #3
    mov     r12, #\step_bytes
    adr     r9, 1f
    mla     r3, r3, r12, r9
    orr     r3, r3, #1
    adds    r2, #3
    lsrs    r2, r2, #2
    bx      r3
#endif
    .balign 4
1:
    step\width
#if !EF_SMALL
    step\width
    step\width
    step\width
#endif
    subs    r2, #1
    bne     1b
    ldr     r8, [sp, #AT_LAYER]
2:
    ldr     r9, [r8, #N_TAILS]
    cmp     r9, #0
    beq     4f
    ldr     r2, [sp, #AT_TAILS]
3:
    tail    \sums
    subs    r9, #1
    bne     3b
    str     r2, [sp, #AT_TAILS]
4:
    ldr     r2, [sp, #AT_OUT]
    ldr     lr, [sp, #AT_REQUANT]
    ldr     r12, [r8, #ZERO_POINT]
.if \is_wide
    ldr     r3, [r8, #LEFT_SHIFT]
    mov     r1, r8
.endif
.if \width == 4
    ldmia   lr!, {r8-r11}
.elseif \width == 2
    ldrd    r8, r9, [lr], #8
.else
    ldr     r8, [lr], #4
.endif
    str     lr, [sp, #AT_REQUANT]
.if \is_wide
    push    {r0}
    ldrd    r0, r1, [r1, #BOUNDS]
.endif
    byte    r4, r8, \is_wide
.if \width > 1
    byte    r5, r9, \is_wide
.endif
.if \width > 2
    byte    r6, r10, \is_wide
    byte    r7, r11, \is_wide
.endif
.if \is_wide
    pop     {r0}
.endif
    str     r2, [sp, #AT_OUT]
    ldr     r2, [sp, #AT_LEFT]
    subs    r2, #\width
    str     r2, [sp, #AT_LEFT]
.endm

.macro dense name, is_wide
    .section .text.\name, "ax", %progbits
    .balign 4
    .global \name
    .thumb_func
    .type   \name, %function
\name:
    push    {r4-r11, lr}
    sub     sp, sp, #FRAME
    str     r0, [sp, #AT_LAYER]
    str     r1, [sp, #AT_IN]
    str     r2, [sp, #AT_OUT]
    ldmia   r0, {r0, r3, r4, r5}    /* weights, requant, tails, outputs */
    strd    r5, r4, [sp, #AT_LEFT]
    str     r3, [sp, #AT_REQUANT]
    mov     r2, r5
5:
    cmp     r2, #4
    blo     6f
    group   4, STEP_BYTES_4, \is_wide, r4, r5, r6, r7
    b       5b
6:
    cmp     r2, #2
    blo     7f
    group   2, STEP_BYTES_2, \is_wide, r4, r5
7:
    cmp     r2, #0
    beq     8f
    group   1, STEP_BYTES_1, \is_wide, r4
8:
    add     sp, sp, #FRAME
    pop     {r4-r11, pc}
    .size   \name, . - \name
.endm

    dense   ef_dense_s8, 0
    dense   ef_dense_wide_s8, 1

#endif

#if defined(__linux__)
    .section .note.GNU-stack, "", %progbits /* nothing here needs a stack that can be executed */
#endif
