/* SPDX-License-Identifier: MIT
 *
 * The wire against a real QEMU: a machine without anything, no guest, no KVM.
 */
#include <signal.h>
#include <sys/wait.h>

#include "peer.h"
#include "util/json.h"
#include "util/mem.h"
#include "wire/qga.h"
#include "wire/qmp.h"

static const struct vf_log no_log;
static char qmp_path[100], pretty_path[100], qga_path[100];
static char events[2000];
static int lost;

struct answer {
    int count;
    enum vf_outcome outcome;
    char words[VF_WORDS_SIZE];
    struct json_object *value;
};

static void
on_reply(void *data, const struct vf_reply *reply)
{
    struct answer *answer = data;

    answer->count++;
    answer->outcome = reply->outcome;
    snprintf(answer->words, sizeof answer->words, "%s", reply->words);
    json_object_put(answer->value);
    answer->value = json_object_get(reply->value);
}

static void
on_event(void *owner, const char *name, struct json_object *data)
{
    size_t length = strlen(events);

    (void)owner, (void)data;
    snprintf(events + length, sizeof events - length, "%s ", name);
}

static void
on_lost(void *owner, const char *why)
{
    (void)owner, (void)why;
    lost++;
}

static const struct vf_qmp_hooks hooks = {.event = on_event, .lost = on_lost};

static pid_t
start_qemu(const char *program)
{
    char *qmp = vf_printf("unix:%s,server=on,wait=off", qmp_path);
    char *chardev = vf_printf("socket,id=p,path=%s,server=on,wait=off", pretty_path);
    char *agent = vf_printf("socket,id=a,path=%s,server=on,wait=off", qga_path);
    pid_t child = fork();

    if (child == 0) {
        execlp(program, program, "-M", "none", "-accel", "tcg", "-nodefaults", "-display", "none",
               "-S", "-qmp", qmp, "-chardev", chardev, "-mon", "chardev=p,mode=control,pretty=on",
               "-chardev", agent, (char *)NULL);
        _exit(127);
    }
    free(qmp);
    free(chardev);
    free(agent);
    return child;
}

static const char *
run_state(struct vf_qmp *qmp, struct answer *answer)
{
    int before = answer->count;

    vf_qmp_send(qmp, "query-status", NULL, on_reply, answer);
    UNTIL(answer->count > before);
    return answer->outcome == VF_OK ? vf_json_string(answer->value, "status") : answer->words;
}

/* The VM runs, and "stop" is what is primed. */
static void
test_prime(struct vf_qmp *qmp)
{
    static struct answer status, stop;
    int errors = 0;

    for (int i = 0; i < 20; i++) {
        vf_qmp_prime(qmp, "stop", NULL);
        turn_for(i % 3);
        vf_qmp_unprime(qmp);
        if (i % 2)
            turn_for(2);
        const char *state = run_state(qmp, &status);

        errors += !state || strcmp(state, "running") != 0;
    }
    is_int(errors, 0, "primed and taken back, again and again: nothing happens, QEMU answers");

    vf_qmp_prime(qmp, "stop", NULL);
    turn_for(5);
    vf_qmp_close(qmp);
    for (int i = 0; i < 2; i++) {
        stop.count = 0;
        vf_qmp_open(qmp, qmp_path, on_reply, &stop);
        UNTIL(stop.count);
        is_str(run_state(qmp, &status), "running",
               i ? "... just after it was taken back" : "primed and hung up: nothing happens");
        vf_qmp_prime(qmp, "stop", NULL);
        vf_qmp_unprime(qmp);
        vf_qmp_close(qmp);
    }
    stop.count = 0;
    vf_qmp_open(qmp, qmp_path, on_reply, &stop);
    UNTIL(stop.count);
    stop.count = 0;
    events[0] = '\0';
    vf_qmp_prime(qmp, "stop", NULL);
    turn_for(20);
    ok(!strstr(events, "STOP") && stop.count == 0, "primed: it waits");
    vf_qmp_fire(qmp, on_reply, &stop);
    UNTIL(stop.count);
    ok(stop.outcome == VF_OK && strstr(events, "STOP"), "fired: it happens");
    is_str(run_state(qmp, &status), "paused", "... indeed");
    vf_qmp_send(qmp, "cont", NULL, on_reply, &stop);
    UNTIL(stop.count == 2);
    json_object_put(status.value);
    json_object_put(stop.value);
}

static void
test_qmp(pid_t qemu)
{
    struct vf_qmp *first = vf_qmp_new(loop, &hooks, NULL, &no_log);
    struct vf_qmp *second = vf_qmp_new(loop, &hooks, NULL, &no_log);
    static struct answer opened, other, answers[50], schema;
    double start;

    /* It is only just starting. */
    UNTIL(access(qmp_path, F_OK) == 0);
    start = ev_time();
    vf_qmp_open(first, qmp_path, on_reply, &opened);
    UNTIL(opened.count);
    diag("open: %.2f ms", (ev_time() - start) * 1000);
    ok(opened.outcome == VF_OK && vf_json_object(opened.value, "version"), "greeted: %s",
       opened.words);
    ok(vf_qmp_ready(first) && vf_qmp_has_oob(first), "ready, with oob");
    is_int(vf_qmp_peer_pid(first), qemu, "and it is the process that was started");

    vf_qmp_set_greeting_ms(second, 100);
    vf_qmp_open(second, qmp_path, on_reply, &other);
    UNTIL(other.count);
    has_str(other.words, "another client is connected to this QMP socket", "it serves only one");

    start = ev_time();
    for (int i = 0; i < 50; i++)
        vf_qmp_send(first, i % 2 ? "query-name" : "query-status", NULL, on_reply, &answers[i]);
    UNTIL(answers[49].count);
    diag("50 requests: %.2f ms", (ev_time() - start) * 1000);
    int right = 0;

    for (int i = 0; i < 50; i++)
        right += answers[i].count == 1 && answers[i].outcome == VF_OK;
    is_int(right, 50, "fifty requests at a time");
    is_str(vf_json_string(answers[48].value, "status"), "prelaunch", "what it says");

    vf_qmp_send(first, "x-nonsense", NULL, on_reply, &answers[0]);
    vf_qmp_send(first, "qom-list", vf_json_strings("path", "/nowhere", NULL), on_reply,
                &answers[1]);
    UNTIL(answers[1].count == 2);
    ok(answers[0].outcome == VF_REFUSED && answers[1].outcome == VF_REFUSED, "refusals");
    is_str(answers[0].words, "The command x-nonsense has not been found", "in QEMU's own words");

    vf_qmp_send(first, "stop", NULL, on_reply, &answers[0]);
    vf_qmp_send(first, "cont", NULL, on_reply, &answers[1]);
    vf_qmp_send_oob(first, "query-yank", NULL, on_reply, &answers[2]);
    UNTIL(answers[1].count == 3 && answers[2].count == 2);
    ok(answers[2].outcome == VF_OK && json_object_is_type(answers[2].value, json_type_array),
       "out of band");
    has_str(events, "RESUME", "events");

    start = ev_time();
    vf_qmp_send(first, "query-qmp-schema", NULL, on_reply, &schema);
    UNTIL(schema.count);
    diag("query-qmp-schema: %zu entries in %.2f ms", vf_json_length(schema.value),
         (ev_time() - start) * 1000);
    ok(vf_json_length(schema.value) > 500, "its largest reply");

    test_prime(first);
    vf_qmp_close(first);
    other.count = 0;
    vf_qmp_set_greeting_ms(second, 20000);
    vf_qmp_open(second, pretty_path, on_reply, &other);
    UNTIL(other.count);
    ok(other.outcome == VF_OK, "a monitor that prints prettily: %s", other.words);
    vf_qmp_send(second, "query-status", NULL, on_reply, &answers[0]);
    UNTIL(answers[0].count == 4);
    is_str(vf_json_string(answers[0].value, "status"), "running", "is understood");
    opened.count = 0;
    vf_qmp_open(first, qmp_path, on_reply, &opened);
    UNTIL(opened.count);
    ok(vf_qmp_ready(first), "closed and opened again");

    vf_qmp_send(first, "quit", NULL, on_reply, &answers[0]);
    UNTIL(lost == 2);
    ok(answers[0].outcome == VF_OK && answers[0].count == 5, "quit is answered");
    is_int(lost, 2, "and both connections end");

    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        json_object_put(answers[i].value);
    json_object_put(opened.value);
    json_object_put(other.value);
    json_object_put(schema.value);
    vf_qmp_free(first);
    vf_qmp_free(second);
}

static void
test_qga(void)
{
    struct vf_qga *qga = vf_qga_new(loop, on_lost, NULL, &no_log);
    static struct answer opened, answer;

    vf_qga_open(qga, qga_path, on_reply, &opened);
    UNTIL(opened.count);
    ok(opened.outcome == VF_OK, "the agent's socket: %s", opened.words);
    vf_qga_call(qga, "guest-ping", NULL, on_reply, &answer);
    turn_for(50);
    is_int(answer.count, 0, "with nobody behind it, nobody answers");
    vf_qga_free(qga);
}

int
main(void)
{
    const char *program = getenv("QEMU_SYSTEM");
    int status = 0;

    if (!program)
        program = "qemu-system-x86_64";
    test_begin();
    snprintf(qmp_path, sizeof qmp_path, "%s/qmp", folder);
    snprintf(pretty_path, sizeof pretty_path, "%s/pretty", folder);
    snprintf(qga_path, sizeof qga_path, "%s/qga", folder);
    pid_t qemu = start_qemu(program);

    UNTIL(access(qga_path, F_OK) == 0 || waitpid(qemu, &status, WNOHANG) != 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        remove_folder();
        if (getenv("CI")) {
            ok(false, "there is no %s", program);
            return done_testing();
        }
        printf("1..0 # SKIP there is no %s\n", program);
        return 0;
    }
    test_qga();
    test_qmp(qemu);
    if (!UNTIL(waitpid(qemu, &status, WNOHANG) != 0))
        kill(qemu, SIGKILL);
    ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "QEMU ended by itself");
    return test_end();
}
