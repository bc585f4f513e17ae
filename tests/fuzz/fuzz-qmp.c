/* SPDX-License-Identifier: MIT
 *
 * A QEMU that says anything, to a client that does anything: "@-1" is the id of the client's first
 * request, which is qmp_capabilities. Each request ends once, whatever comes.
 */
#include "wire/qmp.h"

#include "talk.h"

static struct vf_qmp *qmp;
static struct asked *opening;

static void
on_event(void *owner, const char *name, struct json_object *data)
{
    (void)owner;
    MUST(!talk.inside && name);
    MUST(!data || json_object_is_type(data, json_type_object));
}

static void
hear(void)
{
    talk_hear("\"id\":\"", "0123456789abcdef");
}

static void
attach(void)
{
    int ends[2];

    talk_hang_up();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return;
    talk.fd = ends[1];
    opening = talk_ask();
    vf_qmp_attach(qmp, ends[0], getpid(), "QEMU", talk_on_reply, opening);
}

static void
send_one(void)
{
    struct json_object *arguments = json_object_new_object();
    struct asked *asked = talk_ask();

    vf_json_add_string(arguments, "device", "vd0");
    asked->handle = vf_qmp_send(qmp, "query-block", arguments, talk_on_reply, asked);
}

static void
act(char what)
{
    bool primed = vf_qmp_is_primed(qmp), closed = opening->told || opening->forgotten;

    CALL_BEGINS(&talk);
    if (what == 's' && !primed) {
        send_one();
    } else if (what == 'o' && !primed && vf_qmp_has_oob(qmp)) {
        struct asked *asked = talk_ask();

        asked->handle = vf_qmp_send_oob(qmp, "query-status", NULL, talk_on_reply, asked);
    } else if (what == 'f') {
        struct asked *last = &talk.asked[talk.count - 1];

        /* An opening has no handle. */
        vf_qmp_forget(qmp, last->handle);
        last->forgotten |= last->handle != 0;
    } else if (what == 'p' && !primed) {
        vf_qmp_prime(qmp, "transaction", NULL);
    } else if (what == 'F' && primed) {
        struct asked *asked = talk_ask();

        asked->handle = vf_qmp_fire(qmp, talk_on_reply, asked);
    } else if (what == 'u') {
        vf_qmp_unprime(qmp);
    } else if (what == 'h') {
        talk_hang_up();
    } else if (what == 'c') {
        vf_qmp_close(qmp);
        talk_forget_all();
    } else if (what == 'a' && closed && !vf_qmp_ready(qmp)) {
        attach();
    }
    CALL_ENDS(&talk);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct vf_qmp_hooks hooks = {.event = on_event, .lost = talk_on_lost};

    if (!talk.loop)
        talk = (struct talk){.loop = ev_loop_new(EVFLAG_AUTO), .fd = -1};
    talk.count = talk.length = 0;
    talk.secret[0] = '\0';
    qmp = vf_qmp_new(talk.loop, &hooks, NULL, &talk_log);
    CALL_BEGINS(&talk);
    attach();
    CALL_ENDS(&talk);
    talk_through(data, size, act, hear);
    /* With the connection everything ends that is still to come. */
    talk_hang_up();
    for (int turns = 0; turns < 1000 && !talk_is_settled(); turns++)
        talk_turn(1);
    MUST(talk_is_settled());
    vf_qmp_free(qmp);
    talk_turn(1);
    return 0;
}
