@ A firmware whose instructions and cycles can be counted by hand. No mailbox protocol: tests run it between its labels.
    .syntax unified
    .thumb
    .section .vectors, "a"
    .word __edgefront_stack_top
    .word Reset_Handler

    .macro function name
    .balign 4
    .global \name
    .type \name, %function
    .thumb_func
\name:
    .endm
    .macro end name
    .size \name, . - \name
    .endm

    .text
function Reset_Handler
    ldr r0, =edgefront_mailbox      @ the core starts here; nothing of this is inside a region
again:
    bl edgefront_ready
    bl edgefront_run
    bl edgefront_after_run
    b again
end Reset_Handler

function edgefront_ready
    bx lr
end edgefront_ready

function edgefront_after_run
    bx lr
end edgefront_after_run

function edgefront_run              @ region run:            instructions  cycles
    push {r4, lr}                   @                        1             3 (1 + 2 registers)
    bl edgefront_layer_00_loop      @                        1             3 (1 + taken 2)
    bl edgefront_layer_01_mixed     @                        1             3
    pop {r4, pc}                    @                        1             5 (1 + 2 registers + taken 2)
end edgefront_run                   @ sum                    4             14

function edgefront_layer_00_loop    @ region loop
    movs r1, #10                    @                        1             1
loop:
    subs r1, #1                     @                        10            10
    bne loop                        @                        10            10 + 9 x 2 taken
    bx lr                           @                        1             1 + 2
end edgefront_layer_00_loop         @ sum                    22            42

function edgefront_layer_01_mixed   @ region mixed
    push {lr}                       @                        1             2
    ldr r1, [r0]                    @                        1             2 (first of a row)
    ldr.w r2, [r0, #4]              @                        1             1 (next one)
    str r1, [r0]                    @                        1             1
    mul r2, r1, r2                  @                        1             1
    smlad r3, r1, r2, r3            @                        1             1
    movs r2, #7                     @                        1             1
    udiv r1, r1, r2                 @                        1             7
    ldrd r2, r3, [r0]               @                        1             3
    ldm r0, {r1, r2, r3}            @                        1             4 (1 + 3 registers)
    cmp r1, r1                      @                        1             1
    it ne                           @                        1             1
    movne r1, r2                    @                        1             1 (skipped, counted)
    bl helper                       @                        1             1 + 2
    pop {pc}                        @                        1             2 + 2
end edgefront_layer_01_mixed        @ sum, with the helper   18            38
function helper                     @ in no region: counts for the caller's
    vmov s0, r1                     @                        1             1
    vadd.f32 s0, s0, s0             @                        1             1
    bx lr                           @                        1             1 + 2
end helper

    .section .rodata
    .global edgefront_image_id
    .type edgefront_image_id, %object
edgefront_image_id:
    .space 32, 7
    .bss
    .global edgefront_mailbox
    .type edgefront_mailbox, %object
    .balign 4
edgefront_mailbox:
    .space 124
