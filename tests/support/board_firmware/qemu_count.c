/* A QEMU plugin (API of qemu-plugin.h, version 1) that counts the blocks executed between two addresses.
 *
 * Arguments: start=0x… end=0x… out=FILE. Counting begins when the block at `start` is entered. When the block at `end` is
 * entered next, every block that ran in between is written to the file as a line "b address bytes instructions runs taken",
 * where `taken` is how often the block was left to another place than the one behind it, and then the line "end".
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
__attribute__((weak)) extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*on_block)(uint64_t, struct qemu_plugin_tb *));
__attribute__((weak)) extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*on_run)(unsigned, void *), int, void *);
__attribute__((weak)) extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
__attribute__((weak)) extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
__attribute__((weak)) extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
__attribute__((weak)) extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

typedef struct block {
    uint64_t address, size, instructions, runs, taken;
    struct block *next;
} block_t;

static uint64_t start, end;
static int is_counting;
static block_t *blocks, *previous;
static FILE *out;

static void write_out(void) {
    for (block_t *block = blocks; block; block = block->next) {
        if (block->runs)
            fprintf(out, "b %llu %llu %llu %llu %llu\n", (unsigned long long)block->address, (unsigned long long)block->size,
                    (unsigned long long)block->instructions, (unsigned long long)block->runs, (unsigned long long)block->taken);
        block->runs = block->taken = 0;
    }
    fprintf(out, "end\n");
    fflush(out);
}

static void on_run(unsigned cpu, void *data) {
    block_t *block = data;
    (void)cpu;
    if (previous && block->address != previous->address + previous->size) previous->taken++;
    previous = NULL;
    if (block->address == start) is_counting = 1;
    if (block->address == end && is_counting) {
        is_counting = 0;
        write_out();
    }
    if (is_counting) {
        block->runs++;
        previous = block;
    }
}

/* QEMU's own size of a block's last instruction includes what it peeked at behind it at the end of a page. */
static uint64_t thumb_size(const struct qemu_plugin_insn *instruction) {
    const uint8_t *bytes = qemu_plugin_insn_data(instruction);
    return bytes[1] >> 3 >= 0x1D ? 4 : 2;
}

static void on_block(uint64_t id, struct qemu_plugin_tb *tb) {
    block_t *block = calloc(1, sizeof *block);
    (void)id;
    block->address = qemu_plugin_tb_vaddr(tb);
    block->instructions = qemu_plugin_tb_n_insns(tb);
    for (size_t i = 0; i < block->instructions; i++) block->size += thumb_size(qemu_plugin_tb_get_insn(tb, i));
    block->next = blocks;
    blocks = block;
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
