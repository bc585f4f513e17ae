/* SPDX-License-Identifier: MIT
 *
 * A guest that says anything, to a client that does anything. '@' is the number of the last
 * guest-sync-delimited. Each request ends once, whatever comes.
 */
#include "wire/qga.h"

#include <sys/un.h>

#include "talk.h"

static struct vf_qga *qga;
static struct asked *opening;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static char *folder;
static int listener = -1;

static void
hear(void)
{
    talk_hear("\"id\":", "0123456789");
}

static void
connect_it(void)
{
    talk_hang_up();
    opening = talk_ask();
    vf_qga_open(qga, address.sun_path, talk_on_reply, opening);
}

static void
accept_it(void)
{
    talk_turn(2);
    talk.fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    MUST(talk.fd >= 0);
    talk_turn(2);
}

/* The one request that may be outstanding. */
static bool
is_free(void)
{
    for (size_t i = 0; i < talk.count; i++)
        if (!talk.asked[i].told && !talk.asked[i].forgotten)
            return false;
    return true;
}

static void
act(char what)
{
    struct asked *last = &talk.asked[talk.count - 1];
    bool opened = opening->told || opening->forgotten;

    CALL_BEGINS(&talk);
    if (what == 's' && is_free()) {
        struct json_object *arguments = json_object_new_object();

        vf_json_add_string(arguments, "mountpoints", "/");
        vf_qga_call(qga, "guest-fsfreeze-freeze-list", arguments, talk_on_reply, talk_ask());
    } else if (what == 'f' && last != opening) {
        vf_qga_forget(qga);
        last->forgotten = true;
    } else if (what == 'h') {
        talk_hang_up();
    } else if (what == 'c') {
        vf_qga_close(qga);
        talk_forget_all();
    } else if (what == 'a' && opened && is_free() && !vf_qga_is_open(qga)) {
        connect_it();
        CALL_ENDS(&talk);
        accept_it();
    }
    CALL_ENDS(&talk);
}

static void
clean_up(void)
{
    unlink(address.sun_path);
    rmdir(folder);
}

static void
set_up(void)
{
    static char made[] = "/tmp/vmfrost-fuzz-XXXXXX";

    folder = mkdtemp(made);
    MUST(folder);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/qga.sock", folder);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    MUST(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    MUST(listen(listener, 8) == 0 && atexit(clean_up) == 0);
    talk = (struct talk){.loop = ev_loop_new(EVFLAG_AUTO), .fd = -1};
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (listener < 0)
        set_up();
    talk.count = talk.length = 0;
    talk.secret[0] = '\0';
    qga = vf_qga_new(talk.loop, talk_on_lost, NULL, &talk_log);
    CALL_BEGINS(&talk);
    connect_it();
    CALL_ENDS(&talk);
    accept_it();
    talk_through(data, size, act, hear);
    /* With the connection everything ends that is still to come. */
    talk_hang_up();
    for (int turns = 0; turns < 1000 && !talk_is_settled(); turns++)
        talk_turn(1);
    MUST(talk_is_settled());
    vf_qga_free(qga);
    talk_turn(1);
    return 0;
}
