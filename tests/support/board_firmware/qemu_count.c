/* A QEMU plugin (API of qemu-plugin.h, version 1) that counts the instructions executed between two addresses.
 *
 * Arguments: start=0x… end=0x… out=FILE. Every time the block at `end` is entered, the count since `start` was entered is
 * written to the file as one line.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
__attribute__((weak)) extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*on_block)(uint64_t, struct qemu_plugin_tb *));
__attribute__((weak)) extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*on_run)(unsigned, void *), int, void *);
__attribute__((weak)) extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
__attribute__((weak)) extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

typedef struct {
    uint64_t address, instructions;
} block_t;

static uint64_t start, end, count;
static int is_counting;
static FILE *out;

static void on_run(unsigned cpu, void *data) {
    const block_t *block = data;
    (void)cpu;
    if (block->address == start) {
        is_counting = 1;
        count = 0;
    }
    if (block->address == end && is_counting) {
        is_counting = 0;
        fprintf(out, "%llu\n", (unsigned long long)count);
        fflush(out);
    }
    if (is_counting) count += block->instructions;
}

static void on_block(uint64_t id, struct qemu_plugin_tb *tb) {
    block_t *block = malloc(sizeof *block);
    (void)id;
    block->address = qemu_plugin_tb_vaddr(tb);
    block->instructions = qemu_plugin_tb_n_insns(tb);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_run, 0, block);
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "start=", 6)) start = strtoull(argv[i] + 6, NULL, 0);
        if (!strncmp(argv[i], "end=", 4)) end = strtoull(argv[i] + 4, NULL, 0);
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    }
    if (!out) return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    return 0;
}
