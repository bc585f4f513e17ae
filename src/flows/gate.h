/* SPDX-License-Identifier: MIT
 *
 * How many snapshots of one context are worked on at a time.
 *
 * All operations of a context share one loop, and each of them now and then keeps it busy for a
 * moment: a journal that is made durable, a fork. While a guest is frozen, all others' moments add
 * to its time. So only so many are let in, in their order; whoever waits has done nothing yet, or
 * waits for the others of its group, and takes up little memory.
 *
 * Guarantees: first come, first served; nobody who is inside is kept from going on; a place is
 * given back when the snapshot is done, or has failed and unwinds, which may take long.
 */
#ifndef VF_FLOWS_GATE_H
#define VF_FLOWS_GATE_H

#include <ev.h>
#include <stdbool.h>
#include <stddef.h>

struct vf_flow;

struct vf_gate {
    struct ev_loop *loop;
    size_t most, inside;
    struct vf_flow *first; /* of those that wait */
    ev_timer turn;         /* never started: fed when a place is free */
};

/* Where a flow is. */
struct vf_gate_place {
    enum { VF_GATE_OUTSIDE, VF_GATE_WAITING, VF_GATE_INSIDE } at;
    struct vf_flow *behind; /* the next one that waits */
    void (*fn)(struct vf_flow *flow);
};

/* `most` 0: as many as is good. */
void vf_gate_init(struct vf_gate *gate, struct ev_loop *loop, size_t most);
/* Nobody waits any more. */
void vf_gate_close(struct vf_gate *gate);

/* True: it is inside, or has no gate. Else `fn` is called from the loop when it is. */
bool vf_gate_enter(struct vf_flow *flow, void (*fn)(struct vf_flow *flow));
/* It needs its place no more, or does not wait any longer; nothing if it is outside. */
void vf_gate_leave(struct vf_flow *flow);

#endif
