/*
 * The functions of ef_add_s8.h for cores with the DSP extension: four bytes a turn,
 *
 *     2 loads, and for each byte 2 SXTB, 2 LSL, 2 MOV, 2 SMLAL, SSAT, STRB.
 */
#include "ef_options.h"

#if defined(__ARM_FEATURE_DSP) && !defined(EF_PORTABLE)

    .syntax unified
    .thumb

/* Byte `rotation` of the words in r9 and r10; the sum is in r12 and lr. */
.macro sum rotation, is_wide
    mov     r12, r4
    mov     lr, r5
    sxtb    r11, r9, ror #\rotation
    lsl     r11, r11, r8
    smlal   r12, lr, r11, r6
    sxtb    r11, r10, ror #\rotation
    lsl     r11, r11, r8
    smlal   r12, lr, r11, r7
.if \is_wide
    ldrd    r11, r12, [sp]
    cmp     lr, r11
    it      lt
    movlt   lr, r11
    cmp     lr, r12
    it      gt
    movgt   lr, r12
.else
    ssat    lr, #8, lr
.endif
    strb    lr, [r0], #1
.endm

.macro addition name, is_wide
    .section .text.\name, "ax", %progbits
    .balign 4
    .global \name
    .thumb_func
    .type   \name, %function
\name:
    push    {r4-r11, lr}
    ldr     r12, [sp, #36]          /* out */
    ldmia   r0!, {r4-r8}            /* offset, multipliers, shift */
    ldmia   r0, {r10, r11}
    push    {r10, r11}              /* bounds */
    mov     r0, r12
#if !EF_SMALL
    subs    r1, #4
    blt     2f
1:
    ldr     r9, [r2], #4
    ldr     r10, [r3], #4
    sum     0, \is_wide
    sum     8, \is_wide
    sum     16, \is_wide
    sum     24, \is_wide
    subs    r1, #4
    bge     1b
2:
    adds    r1, #4
    beq     4f
#endif
3:
    ldrb    r9, [r2], #1
    ldrb    r10, [r3], #1
    sum     0, \is_wide
    subs    r1, #1
    bne     3b
4:
    add     sp, sp, #8
    pop     {r4-r11, pc}
    .size   \name, . - \name
.endm

    addition ef_add_s8, 0
    addition ef_add_wide_s8, 1

#endif

#if defined(__linux__)
    .section .note.GNU-stack, "", %progbits /* nothing here needs a stack that can be executed */
#endif
