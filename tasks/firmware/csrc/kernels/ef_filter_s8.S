/*
 * The functions of ef_filter_s8.h for cores with the DSP extension. Four taps of two channels and four pixels:
 *
 *     4 loads of weights, 4 SXTB16, 4 single and 2 double loads of input, 16 SMLAD: 30 instructions for 32 products.
 *
 * There are no registers to keep the weights of both the even and the odd taps, so they are loaded twice. A Cortex-M4
 * takes one cycle for each load that follows another, which makes four single loads faster than two double ones.
 */
#include "ef_options.h"

#if defined(__ARM_FEATURE_DSP) && !defined(EF_PORTABLE)

    .syntax unified
    .thumb

/* ef_filter_t */
#define WEIGHTS 0
#define N_PAIRS 4
#define N_STEPS 8
#define STRIDE 12
#define ZERO_POINT 16
#define TAILS 20
#define N_TAILS 24
#define LEFT_SHIFT 28
#define BOUNDS 32

.macro function name
    .section .text.\name, "ax", %progbits
    .balign 4
    .global \name
    .thumb_func
    .type \name, %function
\name:
.endm

.macro end name
    .size \name, . - \name
.endm

/* r0 weights, r1 columns, r2 and r3 weights of the two channels; r4-r7 sums of the first, r8-r11 of the second. */
.macro half_step
    smlad   r4, r2, r12, r4
    smlad   r5, r2, lr, r5
    smlad   r8, r3, r12, r8
    smlad   r9, r3, lr, r9
    ldrd    r12, lr, [r1], #8
    smlad   r6, r2, r12, r6
    smlad   r7, r2, lr, r7
    smlad   r10, r3, r12, r10
    smlad   r11, r3, lr, r11
.endm

/* 30 instructions of four bytes each: the loop is entered at one of its four steps. */
#define STEP_BYTES 120
.macro step
    ldr.w   r2, [r0]
    ldr.w   r3, [r0, #4]
    ldr.w   r12, [r1], #4
    ldr.w   lr, [r1], #4
    sxtb16  r2, r2
    sxtb16  r3, r3
    half_step
    ldr.w   r2, [r0], #4
    ldr.w   r3, [r0], #4
    ldr.w   r12, [r1], #4
    ldr.w   lr, [r1], #4
    sxtb16  r2, r2, ror #8
    sxtb16  r3, r3, ror #8
    half_step
.endm

/* One tap that fills no word. */
.macro tail_tap first, second
    ldrsb   r2, [r0], #1
    ldrsb   r3, [r0], #1
    ldrd    r12, lr, [r1, #\first]
    smlabb  r4, r2, r12, r4
    smlabb  r5, r2, lr, r5
    smlabb  r8, r3, r12, r8
    smlabb  r9, r3, lr, r9
    ldrd    r12, lr, [r1, #\second]
    smlabb  r6, r2, r12, r6
    smlabb  r7, r2, lr, r7
    smlabb  r10, r3, r12, r10
    smlabb  r11, r3, lr, r11
.endm

.macro clamp register
    cmp     \register, r2
    it      lt
    movlt   \register, r2
    cmp     \register, r3
    it      gt
    movgt   \register, r3
.endm

/* The stack of ef_quad; from AT_STRIDE on as in ef_filter_t. */
#define AT_COLUMNS 0
#define AT_ENTRY 4
#define AT_COLUMNS_END 8
#define AT_OUT_END 12
#define AT_WEIGHTS 16
#define AT_OUT 24
#define AT_STRIDE 28
#define AT_ZERO_POINT 32
#define AT_TAILS 36
#define AT_N_TAILS 40
#define AT_SHIFT 44
#define AT_BOUNDS 48
#define FRAME 56

.macro quad name, has_tail, is_wide
    function \name
    push    {r4-r11, lr}
    sub     sp, sp, #FRAME
    ldmia   r0!, {r3-r5}            /* weights, pairs, steps */
    str     r1, [sp, #AT_COLUMNS]
    add     r1, r1, r5, lsl #5
    str     r1, [sp, #AT_COLUMNS_END]
    add     r4, r2, r4, lsl #1
    str     r4, [sp, #AT_OUT_END]
    str     r2, [sp, #AT_OUT]
    ldmia   r0, {r1, r2, r4, r6-r9}
    add     r10, sp, #AT_STRIDE
    stmia   r10, {r1, r2, r4, r6-r9}
#if EF_SMALL
    adr     r1, 2f
#else
    rsbs    r7, r5, #0
    and     r7, r7, #3              /* steps of the first turn that are left out */
    movs    r2, #STEP_BYTES
    adr     r1, 2f
    mla     r1, r7, r2, r1
#endif
.if \has_tail
    cmp     r5, #0                  /* nothing but a tail */
    it      eq
    adreq   r1, 3f
.endif
    orr     r1, r1, #1
    str     r1, [sp, #AT_ENTRY]
    mov     r0, r3
1:                                  /* a pair of channels */
    ldrd    r4, r8, [r0], #8
    ldr     r1, [sp, #AT_COLUMNS]
    mov     r5, r4
    mov     r6, r4
    mov     r7, r4
    mov     r9, r8
    mov     r10, r8
    mov     r11, r8
    ldr     pc, [sp, #AT_ENTRY]
    .balign 4
2:
    step
#if !EF_SMALL
    step
    step
    step
#endif
    ldr     r12, [sp, #AT_COLUMNS_END]
    cmp     r1, r12
    bne     2b
.if \has_tail
3:
    str     r0, [sp, #AT_WEIGHTS]
    ldr     r0, [sp, #AT_TAILS]
    tail_tap 0, 8
    ldr     r2, [sp, #AT_N_TAILS]
    cmp     r2, #2
    blo     4f
    tail_tap 16, 24
4:
    str     r0, [sp, #AT_TAILS]
    ldr     r0, [sp, #AT_WEIGHTS]
.endif
.if \is_wide
    ldr     r12, [sp, #AT_SHIFT]
    .irp    sum, r4, r5, r6, r7, r8, r9, r10, r11
    lsl     \sum, \sum, r12
    .endr
.endif
    ldr     r12, [sp, #AT_ZERO_POINT]
    ldrd    r2, r3, [r0], #8
    .irp    sum, r4, r5, r6, r7
    smmlar  \sum, \sum, r2, r12
    .endr
    .irp    sum, r8, r9, r10, r11
    smmlar  \sum, \sum, r3, r12
    .endr
.if \is_wide
    ldrd    r2, r3, [sp, #AT_BOUNDS]
    .irp    sum, r4, r5, r6, r7, r8, r9, r10, r11
    clamp   \sum
    .endr
.else
    .irp    sum, r4, r5, r6, r7, r8, r9, r10, r11
    ssat    \sum, #8, \sum
    .endr
.endif
    ldrd    r2, r3, [sp, #AT_OUT]
    add     r12, r2, r3
    add     lr, r12, r3
    add     r3, lr, r3
    strb    r4, [r2], #1
    strb    r8, [r2], #1
    strb    r5, [r12]
    strb    r9, [r12, #1]
    strb    r6, [lr]
    strb    r10, [lr, #1]
    strb    r7, [r3]
    strb    r11, [r3, #1]
    str     r2, [sp, #AT_OUT]
    ldr     r3, [sp, #AT_OUT_END]
    cmp     r2, r3
    bne     1b
    add     sp, sp, #FRAME
    pop     {r4-r11, pc}
    end     \name
.endm

    quad    ef_quad_s8, 0, 0
    quad    ef_quad_tail_s8, 1, 0
    quad    ef_quad_wide_s8, 0, 1
    quad    ef_quad_tail_wide_s8, 1, 1

/*
 * r0 the filter becomes the odd last channel's weights, bias first; r2 its output, r11 its tails; r5 steps, r8 the filter.
 * A pair has its biases, 8 bytes a step, its multipliers.
 */
.macro find_last
    mov     r8, r0
    ldmia   r0, {r0, r4, r5}        /* weights, pairs, steps */
    add     r6, r5, #2
    mul     r6, r6, r4
    add     r0, r0, r6, lsl #3
    add     r2, r2, r4, lsl #1
    ldr     r11, [r8, #TAILS]
    ldr     r6, [r8, #N_TAILS]
    mul     r6, r6, r4
    add     r11, r11, r6, lsl #1
.endm

/* Sums to bytes: multiplier in r1, zero point in r0, bounds in r2 and r3; r9 the filter's shift. */
.macro to_byte register
    lsl     \register, \register, r9
    smmlar  \register, \register, r1, r0
    clamp   \register
.endm

.macro products multiply, weight
    \multiply r4, \weight, r8, r4
    \multiply r5, \weight, r9, r5
    \multiply r6, \weight, r10, r6
    \multiply r7, \weight, r11, r7
.endm

    function ef_quad_last_s8
    push    {r4-r11, lr}
    find_last
    push    {r2, r8, r11}           /* 0 out, 4 filter, 8 tails */
    movs    r12, r5
    ldr     r4, [r0], #4
    mov     r5, r4
    mov     r6, r4
    mov     r7, r4
    beq     2f
1:
    ldr     r2, [r0], #4
    ldmia   r1!, {r8-r11}
    sxtb16  r3, r2
    products smlad, r3
    ldmia   r1!, {r8-r11}
    sxtb16  r2, r2, ror #8
    products smlad, r2
    subs    r12, #1
    bne     1b
2:
    push    {r0}
    ldrd    r2, r0, [sp, #8]        /* filter, tails */
    ldr     r12, [r2, #N_TAILS]
    cmp     r12, #0
    beq     3f
    ldrsb   r2, [r0], #1
    ldmia   r1, {r8-r11}
    products smlabb, r2
    subs    r12, #1
    beq     3f
    ldrsb   r2, [r0], #1
    add     r3, r1, #16
    ldmia   r3, {r8-r11}
    products smlabb, r2
3:
    pop     {r1, r10, r11, r12}     /* weights, out, filter, tails */
    ldr     r1, [r1]
    ldr     r0, [r11, #ZERO_POINT]
    ldr     r9, [r11, #LEFT_SHIFT]
    ldrd    r2, r3, [r11, #BOUNDS]
    .irp    sum, r4, r5, r6, r7
    to_byte \sum
    .endr
    ldr     r3, [r11, #STRIDE]
    strb    r4, [r10]
    strb    r5, [r10, r3]
    add     r10, r10, r3, lsl #1
    strb    r6, [r10]
    strb    r7, [r10, r3]
    pop     {r4-r11, pc}
    end     ef_quad_last_s8

/* A pixel's words lie 32 bytes apart, those of the odd taps 16 further. */
    function ef_pixel_s8
    push    {r4-r11, lr}
    push    {r0, r1, r2}            /* 0 filter, 4 column, 8 out */
    mov     r8, r0
    ldmia   r0, {r0, r11}           /* weights, pairs */
    ldr     r9, [r8, #TAILS]
1:
    ldr     r8, [sp]
    ldr     r1, [sp, #4]
    ldrd    r4, r5, [r0], #8
    ldr     r8, [r8, #N_STEPS]
    cmp     r8, #0
    beq     3f
2:
    ldrd    r2, r3, [r0], #8
    ldr     r12, [r1, #16]
    ldr     lr, [r1], #32
    sxtb16  r6, r2
    sxtb16  r7, r3
    smlad   r4, r6, lr, r4
    smlad   r5, r7, lr, r5
    sxtb16  r2, r2, ror #8
    sxtb16  r3, r3, ror #8
    smlad   r4, r2, r12, r4
    smlad   r5, r3, r12, r5
    subs    r8, #1
    bne     2b
3:
    ldr     r8, [sp]
    ldr     r6, [r8, #N_TAILS]
    cbz     r6, 4f
    ldr     r12, [r1]
    ldrsb   r2, [r9], #1
    ldrsb   r3, [r9], #1
    smlabb  r4, r2, r12, r4
    smlabb  r5, r3, r12, r5
    subs    r6, #1
    beq     4f
    ldr     lr, [r1, #16]
    ldrsb   r2, [r9], #1
    ldrsb   r3, [r9], #1
    smlabb  r4, r2, lr, r4
    smlabb  r5, r3, lr, r5
4:
    ldr     r12, [r8, #LEFT_SHIFT]
    ldr     lr, [r8, #ZERO_POINT]
    lsl     r4, r4, r12
    lsl     r5, r5, r12
    ldrd    r2, r3, [r0], #8
    smmlar  r4, r4, r2, lr
    smmlar  r5, r5, r3, lr
    ldrd    r2, r3, [r8, #BOUNDS]
    clamp   r4
    clamp   r5
    ldr     r2, [sp, #8]
    strb    r4, [r2], #1
    strb    r5, [r2], #1
    str     r2, [sp, #8]
    subs    r11, #1
    bne     1b
    add     sp, sp, #12
    pop     {r4-r11, pc}
    end     ef_pixel_s8

    function ef_pixel_last_s8
    push    {r4-r11, lr}
    find_last
    ldr     r4, [r0], #4
    cbz     r5, 2f
1:
    ldr     r3, [r0], #4
    ldr     r7, [r1, #16]
    ldr     r6, [r1], #32
    sxtb16  r10, r3
    smlad   r4, r10, r6, r4
    sxtb16  r3, r3, ror #8
    smlad   r4, r3, r7, r4
    subs    r5, #1
    bne     1b
2:
    ldr     r5, [r8, #N_TAILS]
    cbz     r5, 3f
    ldr     r6, [r1]
    ldr     r7, [r1, #16]
    ldrsb   r3, [r11], #1
    smlabb  r4, r3, r6, r4
    subs    r5, #1
    beq     3f
    ldrsb   r3, [r11], #1
    smlabb  r4, r3, r7, r4
3:
    mov     r7, r2
    ldr     r1, [r0]
    ldr     r0, [r8, #ZERO_POINT]
    ldr     r9, [r8, #LEFT_SHIFT]
    ldrd    r2, r3, [r8, #BOUNDS]
    to_byte r4
    strb    r4, [r7]
    pop     {r4-r11, pc}
    end     ef_pixel_last_s8

#endif

#if defined(__linux__)
    .section .note.GNU-stack, "", %progbits /* nothing here needs a stack that can be executed */
#endif
