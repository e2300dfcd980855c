/* Counts the basic blocks an emulator executes, a region at a time, and stops it at chosen addresses.
 *
 * The emulator calls edgefront_hook_block at the start of every basic block, before its first instruction. Nothing here knows
 * an instruction set: the caller decodes each distinct block once and multiplies. One counter per emulator; not thread-safe.
 *
 * region    an execution belongs to the region whose address range the block starts in; a block in no range (a helper called
 *           from many places) belongs to the region entered last.
 * taken     how often a block was left for an address other than the one after it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NONE = 0xFFFFFFFFu, KEEP = 0xFFFFFFFFu, CLOCK_EVERY = 1u << 14 };
enum { RUNNING = 0, AT_STOP = 1, PAST_DEADLINE = 2, OUT_OF_MEMORY = 3 };

typedef struct {
    uint32_t address, size;
    uint32_t region_before; /* part of the key: the region that was current when the block was entered */
    uint32_t region;        /* the region this execution counts for */
    uint32_t next;          /* the entry that followed last time */
    uint32_t is_stop;
    uint64_t count, taken;
} entry_t;

typedef struct {
    uint32_t start, end, region;
} range_t;

typedef struct {
    int (*stop)(void *emulator);
    entry_t *entries;
    uint32_t *slots; /* open addressing; slot = entry + 1, 0 = free */
    range_t *ranges;
    uint32_t *stops;
    uint32_t n_entries, n_slots, n_ranges, n_stops;
    uint32_t region, previous, previous_end;
    uint32_t state, stopped_at, is_resuming, until_clock;
    int64_t deadline_ns;
} counter_t;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static uint32_t hash(uint32_t address, uint32_t size, uint32_t region) {
    uint32_t mixed = (address >> 1) * 2654435761u ^ size * 40503u ^ region * 2246822519u;
    return mixed ^ mixed >> 15;
}

static uint32_t region_at(const counter_t *c, uint32_t address) {
    for (uint32_t i = 0; i < c->n_ranges; i++)
        if (address >= c->ranges[i].start && address < c->ranges[i].end) return c->ranges[i].region;
    return KEEP;
}

static uint32_t is_stop_at(const counter_t *c, uint32_t address) {
    for (uint32_t i = 0; i < c->n_stops; i++)
        if (c->stops[i] == address) return 1;
    return 0;
}

static int grow(counter_t *c) {
    uint32_t n_slots = c->n_slots * 2;
    uint32_t *slots = calloc(n_slots, sizeof *slots);
    entry_t *entries = realloc(c->entries, n_slots / 2 * sizeof *entries);
    if (entries) c->entries = entries;
    if (!slots || !entries) return free(slots), 0;
    for (uint32_t i = 0; i < c->n_entries; i++) {
        uint32_t at = hash(entries[i].address, entries[i].size, entries[i].region_before);
        while (slots[at & (n_slots - 1)]) at++;
        slots[at & (n_slots - 1)] = i + 1;
    }
    free(c->slots);
    c->slots = slots;
    c->n_slots = n_slots;
    return 1;
}

static uint32_t find(counter_t *c, uint32_t address, uint32_t size) {
    if (c->n_entries * 2 >= c->n_slots && !grow(c)) return NONE;
    uint32_t at = hash(address, size, c->region);
    for (uint32_t slot; (slot = c->slots[at & (c->n_slots - 1)]) != 0; at++) {
        const entry_t *e = &c->entries[slot - 1];
        if (e->address == address && e->size == size && e->region_before == c->region) return slot - 1;
    }
    uint32_t switched = region_at(c, address);
    entry_t fresh = {address, size, c->region, switched == KEEP ? c->region : switched, 0, is_stop_at(c, address), 0, 0};
    c->entries[c->n_entries] = fresh;
    c->slots[at & (c->n_slots - 1)] = ++c->n_entries;
    return c->n_entries - 1;
}

static void halt(counter_t *c, void *emulator, uint32_t state, uint32_t address) {
    c->state = state;
    c->stopped_at = address;
    c->previous = NONE;
    c->stop(emulator);
}

/** The block callback: counts one execution, or stops the emulator before the block runs. */
void edgefront_hook_block(void *emulator, uint64_t address64, uint32_t size, void *user) {
    counter_t *c = user;
    uint32_t address = (uint32_t)address64, index = NONE;
    if (c->state != RUNNING) return;
    if (c->previous != NONE) {
        entry_t *last = &c->entries[c->previous];
        last->taken += address != c->previous_end;
        const entry_t *guess = &c->entries[last->next];
        if (guess->address == address && guess->size == size && guess->region_before == c->region) index = last->next;
    }
    if (index == NONE) {
        index = find(c, address, size);
        if (index == NONE) {
            halt(c, emulator, OUT_OF_MEMORY, address);
            return;
        }
        if (c->previous != NONE) c->entries[c->previous].next = index;
    }
    entry_t *e = &c->entries[index];
    if (e->is_stop && !c->is_resuming) {
        halt(c, emulator, AT_STOP, address);
        return;
    }
    c->is_resuming = 0;
    if (--c->until_clock == 0) {
        c->until_clock = CLOCK_EVERY;
        if (now_ns() > c->deadline_ns) {
            halt(c, emulator, PAST_DEADLINE, address);
            return;
        }
    }
    e->count++;
    c->region = e->region;
    c->previous = index;
    c->previous_end = address + size;
}

/** A counter that stops through `stop` (the emulator's own function); NULL when memory ran out. */
counter_t *edgefront_hook_create(int (*stop)(void *emulator)) {
    counter_t *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->stop = stop;
    c->n_slots = 1u << 10;
    c->previous = NONE;
    if (!grow(c)) return free(c), NULL;
    return c;
}

void edgefront_hook_destroy(counter_t *c) {
    if (!c) return;
    free(c->entries);
    free(c->slots);
    free(c->ranges);
    free(c->stops);
    free(c);
}

/** Replaces the regions (n triples start, end, region) and forgets all counts; the current region becomes 0. Returns 0 or 1. */
int edgefront_hook_regions(counter_t *c, const uint32_t *triples, uint32_t n) {
    range_t *ranges = malloc((n + 1) * sizeof *ranges);
    if (!ranges) return 0;
    memcpy(ranges, triples, n * sizeof *ranges);
    free(c->ranges);
    c->ranges = ranges;
    c->n_ranges = n;
    memset(c->slots, 0, c->n_slots * sizeof *c->slots);
    c->n_entries = 0;
    c->region = 0;
    c->previous = NONE;
    return 1;
}

/** Before each run: stop at one of these addresses, or when timeout_ns have passed. Returns 0 when memory ran out. */
int edgefront_hook_arm(counter_t *c, const uint32_t *stops, uint32_t n, int64_t timeout_ns, uint32_t resume_at_stop) {
    uint32_t *copy = malloc((n + 1) * sizeof *copy);
    if (!copy) return 0;
    memcpy(copy, stops, n * sizeof *copy);
    free(c->stops);
    c->stops = copy;
    c->n_stops = n;
    for (uint32_t i = 0; i < c->n_entries; i++) c->entries[i].is_stop = is_stop_at(c, c->entries[i].address);
    c->state = RUNNING;
    c->is_resuming = resume_at_stop;
    c->previous = NONE;
    c->until_clock = CLOCK_EVERY;
    c->deadline_ns = now_ns() + timeout_ns;
    return 1;
}

uint32_t edgefront_hook_state(const counter_t *c) { return c->state; }
uint32_t edgefront_hook_stopped_at(const counter_t *c) { return c->stopped_at; }
uint32_t edgefront_hook_n_entries(const counter_t *c) { return c->n_entries; }
const entry_t *edgefront_hook_entries(const counter_t *c) { return c->entries; }
