/* SPDX-License-Identifier: MIT */
#include "flows/gate.h"

#include <assert.h>

#include "flows/flow.h"

/* docs/performance.md has the numbers behind it. */
enum { MOST_INSIDE = 16 };

static void
let_in(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_gate *gate = watcher->data;

    (void)loop;
    (void)revents;
    while (gate->first && gate->inside < gate->most) {
        struct vf_flow *flow = gate->first;

        gate->first = flow->gate_place.behind;
        gate->inside++;
        flow->gate_place.at = VF_GATE_INSIDE;
        flow->gate_place.fn(flow);
    }
}

void
vf_gate_init(struct vf_gate *gate, struct ev_loop *loop, size_t most)
{
    *gate = (struct vf_gate){.loop = loop, .most = most ? most : MOST_INSIDE};
    ev_timer_init(&gate->turn, let_in, 0, 0);
    gate->turn.data = gate;
}

void
vf_gate_close(struct vf_gate *gate)
{
    assert(!gate->first);
    ev_clear_pending(gate->loop, &gate->turn);
}

bool
vf_gate_enter(struct vf_flow *flow, void (*fn)(struct vf_flow *flow))
{
    struct vf_gate *gate = flow->gate;
    struct vf_flow **end;

    if (!gate)
        return true;
    assert(flow->gate_place.at == VF_GATE_OUTSIDE);
    if (!gate->first && gate->inside < gate->most) {
        gate->inside++;
        flow->gate_place.at = VF_GATE_INSIDE;
        return true;
    }
    for (end = &gate->first; *end; end = &(*end)->gate_place.behind)
        continue;
    *end = flow;
    flow->gate_place = (struct vf_gate_place){VF_GATE_WAITING, NULL, fn};
    return false;
}

void
vf_gate_leave(struct vf_flow *flow)
{
    struct vf_gate *gate = flow->gate;
    struct vf_flow **at;

    switch (flow->gate_place.at) {
    case VF_GATE_OUTSIDE:
        return;
    case VF_GATE_WAITING:
        for (at = &gate->first; *at != flow; at = &(*at)->gate_place.behind)
            continue;
        *at = flow->gate_place.behind;
        break;
    case VF_GATE_INSIDE:
        gate->inside--;
        ev_feed_event(gate->loop, &gate->turn, EV_CUSTOM);
        break;
    }
    flow->gate_place.at = VF_GATE_OUTSIDE;
}
