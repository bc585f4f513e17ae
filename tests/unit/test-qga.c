/* SPDX-License-Identifier: MIT */
#include "wire/qga.h"

#include <inttypes.h>

#include "peer.h"
#include "util/json.h"
#include "util/mem.h"

static struct vf_qga *qga;
static struct peer peer;
static bool inside;
static int limit_ms = 3000;
static char story[1 << 14];
static char act_on, act;
static char log_text[1 << 18];

static void
on_log(void *data, enum vmfrost_log_level level, const char *line)
{
    size_t length = strlen(log_text);

    (void)data;
    snprintf(log_text + length, sizeof log_text - length, "%d %s\n", (int)level, line);
}

static const struct vf_log logged = {.fn = on_log};

static void on_reply(void *data, const struct vf_reply *reply);

static void tell(char who, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void
tell(char who, const char *format, ...)
{
    size_t length = strlen(story);
    va_list arguments;

    if (inside)
        length += (size_t)snprintf(story + length, sizeof story - length, "INSIDE A CALL ");
    va_start(arguments, format);
    vsnprintf(story + length, sizeof story - length, format, arguments);
    va_end(arguments);
    if (who != act_on)
        return;
    act_on = 0;
    switch (act) {
    case 'f':
        vf_qga_free(qga);
        qga = NULL;
        break;
    case 'c':
        vf_qga_close(qga);
        break;
    case 'o':
        vf_qga_open(qga, peer.path, on_reply, "o");
        break;
    case 'n':
        vf_qga_call(qga, "guest-next", NULL, on_reply, "n");
        break;
    }
}

static void
on_reply(void *data, const struct vf_reply *reply)
{
    const char *name = data;

    switch (reply->outcome) {
    case VF_OK:
        tell(*name, "%s OK %s%s\n", name,
             reply->value ? json_object_to_json_string_ext(reply->value, JSON_C_TO_STRING_PLAIN)
                          : "nothing",
             reply->words);
        break;
    case VF_REFUSED:
        tell(*name, "%s REFUSED %s%s\n", name, reply->words, reply->value ? "?" : "");
        break;
    case VF_UNKNOWN:
        tell(*name, "%s UNKNOWN %s%s\n", name, reply->words, reply->value ? "?" : "");
        break;
    }
}

static void
on_lost(void *owner, const char *why)
{
    (void)owner;
    tell('L', "LOST %s\n", why);
}

static bool
told(const char *text)
{
    return strstr(story, text) != NULL;
}

static bool
is_story(const char *wanted, const char *what)
{
    bool same = is_str(story, wanted, what);

    story[0] = '\0';
    return same;
}

static void
begin(void)
{
    qga = vf_qga_new(loop, on_lost, NULL, &logged);
    vf_qga_set_connect_ms(qga, limit_ms);
    story[0] = log_text[0] = '\0';
}

static void
dial(const char *path)
{
    inside = true;
    vf_qga_open(qga, path, on_reply, "open");
    inside = false;
}

static void
meet(void)
{
    begin();
    peer_listen(&peer, "qga");
    dial(peer.path);
    peer_accept(&peer);
    if (!UNTIL(told("open OK nothing\n")))
        exit(1);
    story[0] = '\0';
}

static void
part(void)
{
    vf_qga_free(qga);
    qga = NULL;
    peer_end(&peer);
}

static void
call(const char *command, const char *name)
{
    inside = true;
    vf_qga_call(qga, command, NULL, on_reply, (void *)name);
    inside = false;
}

/* Hears a marker and a sync, and is its id. */
static int64_t
hear_sync(void)
{
    int64_t id = 0;

    if (!peer_expect(&peer, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":") ||
        !UNTIL((peer_hear(&peer), strchr(peer.heard, '\n'))) ||
        sscanf(peer.heard, "%" SCNd64, &id) != 1 || !peer_expect(&peer, "}}\n"))
        return 0;
    return id;
}

/* What QEMU's agent says to a marker and a sync. */
static void
answer_sync(int64_t id)
{
    char text[200];

    snprintf(text, sizeof text,
             "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray "
             "'\\uFFFD'\"}}\n\xff{\"return\": %" PRId64 "}\n",
             id);
    peer_say(&peer, text);
}

/* A connection that is in sync. */
static void
synced(void)
{
    meet();
    call("guest-ping", "ping");
    answer_sync(hear_sync());
    peer_expect(&peer, "{\"execute\":\"guest-ping\"}\n");
    peer_say(&peer, "{\"return\": {}}\n");
    UNTIL(told("ping OK {}\n"));
    story[0] = log_text[0] = '\0';
}

/* All that is heard within a moment. */
static bool
hears_exactly(const char *text)
{
    turn_for(3);
    peer_hear(&peer);
    peer.length = 0;
    return strcmp(peer.heard, text) == 0;
}

static void
test_open(void)
{
    begin();
    peer_listen(&peer, "gone");
    peer_end(&peer);
    dial(peer.path);
    UNTIL(told("open"));
    char *wanted = vf_printf("open UNKNOWN cannot connect to the guest agent's socket %s: No such "
                             "file or directory\n",
                             peer.path);

    is_story(wanted, "no such path");
    free(wanted);
    ok(!vf_qga_is_open(qga) && vf_qga_fd(qga) == -1, "closed again");
    vf_qga_free(qga);

    int others[2];

    limit_ms = 60;
    begin();
    peer_listen(&peer, "busy");
    for (int i = 0; i < 2; i++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};

        strcpy(address.sun_path, peer.path);
        others[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(others[i], (struct sockaddr *)&address, sizeof address) < 0)
            exit(1);
    }
    dial(peer.path);
    UNTIL(told("open"));
    ok(told("other clients wait for it already (QEMU serves one at a time)"), "a full queue");
    close(others[0]);
    close(others[1]);
    part();

    limit_ms = 200;
    meet();
    limit_ms = 3000;
    vf_qga_set_connect_ms(qga, limit_ms);
    ok(vf_qga_is_open(qga) && vf_qga_fd(qga) >= 0, "open");
    ok(hears_exactly(""), "and not a word to the agent");
    turn_for(250);
    ok(vf_qga_is_open(qga), "the time limit is off when open");
    vf_qga_close(qga);
    turn_for(3);
    is_story("", "closed, and nobody is told");
    call("guest-ping", "a");
    UNTIL(told("a"));
    is_story("a UNKNOWN there is no connection to the guest agent\n", "a call while closed");
    call("guest-ping", "a");
    vf_qga_forget(qga);
    call("guest-ping", "b");
    vf_qga_close(qga);
    turn_for(3);
    is_story("", "and one that is forgotten at once");
    dial(peer.path);
    call("guest-ping", "c");
    UNTIL(told("c") && told("open"));
    ok(told("c UNKNOWN there is no connection") && told("open OK"), "a call while connecting");
    part();
}

static void
test_first_call(void)
{
    meet();
    vf_qga_call(qga, "guest-file-open", vf_json_strings("path", "/x", NULL), on_reply, "a");
    int64_t id = hear_sync();

    ok(id > 0 && id < INT64_MAX, "the first call carries a sync");
    ok(hears_exactly("{\"execute\":\"guest-file-open\",\"arguments\":{\"path\":\"/x\"}}\n"),
       "the command is right behind it, without an id");
    peer_say(&peer, "{\"return\": {\"stale\": 1}}\n{\"error\": {\"desc\": \"stale\"}}\nhalf a li");
    turn_for(3);
    is_story("", "stale lines are nothing");
    answer_sync(id);
    turn_for(3);
    is_story("", "nor is the error line that the marker causes");
    peer_say(&peer, "{\"return\": 17}\n");
    UNTIL(told("a"));
    is_story("a OK 17\n", "the reply");
    call("guest-info", "b");
    ok(hears_exactly("{\"execute\":\"guest-info\"}\n"), "in sync, no marker is sent");
    peer_say(&peer,
             "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"Command guest-info has "
             "been\\u001b[2J \\u0085\\u202edisabled\\nby \xc3\xa4\"}}\n");
    UNTIL(told("b"));
    is_story("b REFUSED Command guest-info has been [2J ?\?\?\?\?disabled by \xc3\xa4\n",
             "a refusal, in words fit to be shown");
    call("guest-info", "c");
    peer_say(&peer, "{\n  \"return\": {\n    \"pretty\": []\n  }\n}\n");
    UNTIL(told("c"));
    is_story("c OK {\"pretty\":[]}\n", "printed prettily");
    call("guest-info", "d");
    peer_say_slowly(&peer, "{\"return\": \"\xc3\xa4\"}\n");
    UNTIL(told("d"));
    is_story("d OK \"\xc3\xa4\"\n", "byte by byte");
    has_str(log_text, "1 qga: connecting -> unsynced\n", "the connection is logged");
    has_str(log_text, "2 qga > ?{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":",
            "and what is sent");
    has_str(log_text, "2 qga < {\"return\": 17}\n", "and received");
    part();
}

static void
test_wrong_sync(void)
{
    char text[400];

    meet();
    call("guest-ping", "a");
    int64_t id = hear_sync();

    snprintf(text, sizeof text,
             "\xff{\"return\": %" PRId64 "}\n{\"return\": \"wrong\"}\n"
             "\xff{\"return\": \"%" PRId64 "\"}\n{\"return\": \"string\"}\n"
             "\xff{\"return\": %" PRId64 ".0}\n{\"return\": \"double\"}\n"
             "\xff{\"return\": [%" PRId64 "]}\n"
             "\xff{\"return\": -%" PRId64 "}\n"
             "\xff{\"return\": 9223372036854775807}\n\xff{\"return\": 18446744073709551615}\n"
             "\xff\xff\xff garbage \xff{\"ret\xff"
             "{\"error\": {}}\n{\"return\": \"early\"}\n",
             id - 1, id, id, id, id);
    peer_say(&peer, text);
    turn_for(5);
    is_story("", "wrong ids, of all kinds, are not taken");
    snprintf(text, sizeof text, "\xff{\"return\": %" PRId64 "}\n{\"return\": \"right\"}\n", id);
    peer_say_slowly(&peer, text);
    UNTIL(told("a"));
    is_story("a OK \"right\"\n", "the right one is, whatever came before");
    part();
}

/* What the product lives by. */
static void
test_late_freeze(void)
{
    synced();
    call("guest-fsfreeze-freeze", "freeze");
    ok(hears_exactly("{\"execute\":\"guest-fsfreeze-freeze\"}\n"), "a freeze is sent");
    vf_qga_forget(qga);
    inside = true;
    vf_qga_call(qga, "guest-fsfreeze-thaw", NULL, on_reply, "thaw");
    inside = false;
    /* No turn of the loop: the bytes have left when the call returns. */
    peer_hear(&peer);
    int64_t id = 0;
    char wanted[200];

    sscanf(peer.heard, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" SCNd64,
           &id);
    snprintf(wanted, sizeof wanted,
             "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%" PRId64
             "}}\n{\"execute\":\"guest-fsfreeze-thaw\"}\n",
             id);
    is_str(peer.heard, wanted, "marker, sync and thaw are written at once, behind the freeze");
    peer_say(&peer, "{\"return\": 3}\n");
    turn_for(3);
    is_story("", "the late answer to the freeze is not the thaw's");
    answer_sync(id);
    peer_say(&peer, "{\"return\": 2}\n");
    UNTIL(told("thaw"));
    is_story("thaw OK 2\n", "the thaw's own is");
    call("guest-fsfreeze-status", "status");
    peer_say(&peer, "{\"return\": \"thawed\"}\n");
    UNTIL(told("status"));
    is_story("status OK \"thawed\"\n", "and the stream is in sync again");
    part();

    synced();
    call("guest-fsfreeze-freeze", "freeze");
    vf_qga_forget(qga);
    call("guest-fsfreeze-thaw", "thaw 1");
    vf_qga_forget(qga);
    call("guest-fsfreeze-thaw", "thaw 2");
    vf_qga_forget(qga);
    call("guest-fsfreeze-thaw", "thaw 3");
    int64_t ids[3];

    for (int i = 0; i < 3; i++) {
        ids[i] = hear_sync();
        peer_expect(&peer, "guest-fsfreeze-thaw\"}\n");
    }
    ok(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "each sync has an id of its own");
    peer_say(&peer, "{\"return\": 1}\n");
    for (int i = 0; i < 3; i++) {
        answer_sync(ids[i]);
        peer_say(&peer, i == 0   ? "{\"return\": 10}\n"
                        : i == 1 ? "{\"error\": {\"desc\": \"eleven\"}}\n"
                                 : "{\"return\": 12}\n");
    }
    UNTIL(told("thaw"));
    is_story("thaw 3 OK 12\n", "after many that were forgotten, the last gets its own");
    part();
}

/* In sync, the answer is `text`. */
static void
answers(const char *text, const char *wanted, const char *what)
{
    char *line = vf_printf("a %s\n", wanted);

    synced();
    call("guest-fsfreeze-freeze", "a");
    peer_say(&peer, text);
    UNTIL(told("a "));
    turn_for(2);
    is_story(line, what);
    free(line);
    /* What was taken for an answer leaves the stream in sync; anything else does not. */
    peer_expect(&peer, "freeze\"}\n");
    call("guest-fsfreeze-thaw", "b");
    if (strncmp(wanted, "UNKNOWN", 7) == 0) {
        peer_say(&peer, "}\"]{\"return\": \"old\"}");
        answer_sync(hear_sync());
    }
    ok(hears_exactly("{\"execute\":\"guest-fsfreeze-thaw\"}\n"), "and the next command follows");
    peer_say(&peer, "{\"return\": 1}\n");
    UNTIL(told("b "));
    is_story("b OK 1\n", "and gets its own answer");
    part();
}

static void
test_answers(void)
{
    char *deep = vf_alloc(200);

    answers("{\"return\": -1}", "OK -1", "a negative number is an answer");
    answers("{\"return\": \"2\"}", "OK \"2\"", "a string is");
    answers("{\"return\": 99999999999999999999999}", "OK 18446744073709551615",
            "and a number too large for anything");
    answers("{\"return\": 1e400}", "OK 1e400", "and a double");
    answers("{\"return\": null}", "OK nothing", "and null");
    answers("{\"return\": {}, \"id\": 7}", "OK {}", "and one with an id");
    answers("{\"error\": {\"class\": \"X\"}}", "REFUSED it gave no reason",
            "an error without words");
    answers("{\"error\": {\"desc\": \"\"}}", "REFUSED it gave no reason",
            "an error with empty words");
    answers("{\"error\": {\"desc\": \"a\\u0000b\"}}", "REFUSED it gave no reason",
            "an error with a NUL in it");
    answers("{\"error\": \"no\"}",
            "UNKNOWN the guest agent's answer is neither a result nor an error",
            "an error that is a string");
    answers("{}", "UNKNOWN the guest agent's answer is neither a result nor an error", "neither");
    answers("{\"return\": 1, \"error\": {\"desc\": \"x\"}}",
            "UNKNOWN the guest agent's answer is neither a result nor an error", "both");
    answers("{\"event\": \"X\"}",
            "UNKNOWN the guest agent's answer is neither a result nor an error", "an event");
    answers("login: \033[31m\n", "UNKNOWN the guest agent sent no JSON (\"login:  [31m \")",
            "a console");
    answers("[]", "UNKNOWN the guest agent sent no JSON (\"[]\")", "an array");
    answers("{\"return\": tru}", "UNKNOWN the guest agent sent no JSON (\"{\"return\": tru}\")",
            "a broken word");
    answers("{\"return\": \"\xff\"}", "UNKNOWN the guest agent sent a marker instead of an answer",
            "a marker in the answer");
    answers("\xff{\"return\": 1}", "UNKNOWN the guest agent sent a marker instead of an answer",
            "a marker before the answer");
    answers("{\"return\": \"\xc3(\"}",
            "UNKNOWN the guest agent sent no JSON (\"{\"return\": \"?(\"}\")", "no UTF-8");
    strcpy(deep, "{\"return\": ");
    memset(deep + strlen(deep), '[', 32);
    answers(deep,
            "UNKNOWN the guest agent sent a message nested deeper than 32 levels (\"{\"return\": "
            "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\")",
            "nested too deep");
    free(deep);
}

static void
test_too_large(void)
{
    static char block[1 << 16];
    long long total = 0;

    synced();
    call("guest-file-read", "a");
    memset(block, 'x', sizeof block);
    peer_say(&peer, "{\"return\": \"");
    for (; total < 64 << 20 && !told("a "); total += sizeof block) {
        peer_put(&peer, block, sizeof block);
        ev_run(loop, EVRUN_NOWAIT);
    }
    ok(total >= 1 << 20 && total < 2 << 20, "a reply without end is cut off");
    has_str(story,
            "a UNKNOWN the guest agent sent a message larger than 1 MiB (\"{\"return\": \"xx",
            "and so is told");
    story[0] = '\0';
    peer_say(&peer, "\"}");
    turn_for(2);
    ok(vf_qga_is_open(qga), "the connection stays");
    call("guest-fsfreeze-thaw", "b");
    answer_sync(hear_sync());
    peer_say(&peer, "{\"return\": 1}\n");
    UNTIL(told("b "));
    is_story("b OK 1\n", "and can be used");
    call("guest-get-fsinfo", "c");
    peer_say(&peer, "{\"return\": [");
    for (int i = 0; i < 40000; i++)
        peer_say(&peer, i ? ",{}" : "{}");
    UNTIL(told("c "));
    has_str(story, "c UNKNOWN the guest agent sent a message of more than 32768 values",
            "a reply of too many values is cut off");
    part();
}

static void
test_unasked(void)
{
    static const char *const unasked[] = {"{\"return\": 1}\n", "garbage", "\xff",
                                          "\xff\xff{\"return\": 1}\n"};

    for (size_t i = 0; i < sizeof unasked / sizeof *unasked; i++) {
        synced();
        peer_say(&peer, unasked[i]);
        turn_for(3);
        is_story("", "nobody is told of what was not asked for");
        call("guest-ping", "a");
        answer_sync(hear_sync());
        peer_say(&peer, "{\"return\": \"mine\"}\n");
        UNTIL(told("a "));
        is_story("a OK \"mine\"\n", "but the stream is synchronised anew");
        part();
    }
}

/* Of a silent connection the caller decides whether to go on waiting. */
static void
test_hang_up(void)
{
    meet();
    call("guest-ping", "ping");
    ok(!vf_qga_is_ignored(qga), "what was not read yet is not ignored");
    int64_t id = hear_sync();

    peer_expect(&peer, "{\"execute\":\"guest-ping\"}\n");
    vf_qga_forget(qga);
    ok(!vf_qga_was_heard(qga) && vf_qga_is_ignored(qga), "what was read, and not answered, is");
    answer_sync(id);
    ok(UNTIL(vf_qga_was_heard(qga)), "a late answer to a sync is heard");
    ok(!vf_qga_is_ignored(qga), "... and that is an answer");

    int shared = dup(vf_qga_fd(qga));
    char byte;

    vf_qga_hang_up(qga);
    ok(!vf_qga_is_open(qga), "hung up");
    peer_hear(&peer);
    peer.length = 0;
    is_int(recv(peer.fd, &byte, 1, MSG_DONTWAIT), 0, "... for everybody who shares the socket");
    close(shared);
    vf_qga_hang_up(qga);
    dial(peer.path);
    ok(!vf_qga_was_heard(qga), "a new connection is another one");
    part();
}

static void
test_loss(void)
{
    synced();
    call("guest-fsfreeze-freeze", "a");
    peer_say(&peer, "{\"return\": ");
    peer_expect(&peer, "freeze");
    peer_hang_up(&peer);
    UNTIL(told("LOST"));
    is_story(
        "a UNKNOWN the connection to the guest agent is gone: it was closed in the middle of a "
        "message\nLOST the connection to the guest agent is gone: it was closed in the middle "
        "of a message\n",
        "the end within an answer");
    ok(!vf_qga_is_open(qga), "closed");
    dial(peer.path);
    peer_accept(&peer);
    UNTIL(told("open"));
    story[0] = '\0';
    call("guest-fsfreeze-thaw", "b");
    peer_say(&peer, "{\"return\": \"for the former client\"}\n");
    ok(hear_sync() != 0, "a new connection begins with a sync");
    vf_qga_forget(qga);
    peer_hang_up(&peer);
    UNTIL(told("LOST"));
    is_story("LOST the connection to the guest agent is gone: it was closed by the other side\n",
             "a forgotten call is not told of the end");
    part();

    synced();
    peer_hang_up(&peer);
    call("guest-ping", "a");
    UNTIL(told("LOST"));
    is_story(
        "a UNKNOWN the connection to the guest agent is gone: it was closed by the other side\n"
        "LOST the connection to the guest agent is gone: it was closed by the other side\n",
        "a call to a peer that is gone");
    part();

    synced();
    int calls = 0;

    for (; !told("a ") && calls < 300; calls++) {
        char *filler = vf_alloc(30001);

        memset(filler, 'x', 30000);
        vf_qga_call(qga, "guest-file-write", vf_json_strings("x", filler, NULL), on_reply, "a");
        free(filler);
        turn();
        turn();
        if (!told("a "))
            vf_qga_forget(qga);
    }
    is_story("a UNKNOWN QEMU no longer reads what is meant for the guest agent\n",
             "what waits for an agent that does not read is bounded");
    ok(vf_qga_is_open(qga), "the connection stays");
    part();
}

static void
test_callbacks_that_act(void)
{
    for (int i = 0; i < 2; i++) {
        char what = "fc"[i];

        begin();
        peer_listen(&peer, "act");
        act_on = 'o', act = what;
        dial(peer.path);
        UNTIL(act_on == 0);
        turn_for(2);
        is_story("open OK nothing\n", "freed or closed from the open");
        part();

        begin();
        act_on = 'o', act = what;
        dial("/nowhere/at/all");
        UNTIL(act_on == 0);
        ok(told("open UNKNOWN cannot connect"), "freed or closed from an open that failed");
        vf_qga_free(qga);

        synced();
        act_on = 'a', act = what;
        call("guest-ping", "a");
        peer_say(&peer, "{\"return\": 1}\n{\"return\": 2}\n");
        UNTIL(act_on == 0);
        turn_for(2);
        is_story("a OK 1\n", "freed or closed from a reply");
        part();

        synced();
        act_on = 'a', act = what;
        call("guest-ping", "a");
        peer_say(&peer, "garbage\xff garbage");
        UNTIL(act_on == 0);
        turn_for(2);
        is_story("a UNKNOWN the guest agent sent no JSON (\"garbage? garbage\")\n",
                 "freed or closed from garbage");
        part();

        synced();
        act_on = 'a', act = what;
        call("guest-ping", "a");
        peer_say(&peer, "\xff\xff{}");
        UNTIL(act_on == 0);
        turn_for(2);
        is_story("a UNKNOWN the guest agent sent a marker instead of an answer\n",
                 "freed or closed from a marker");
        part();

        synced();
        act_on = 'a', act = what;
        call("guest-ping", "a");
        peer_hang_up(&peer);
        UNTIL(act_on == 0);
        turn_for(2);
        is_story("a UNKNOWN the connection to the guest agent is gone: it was closed by the other "
                 "side\n",
                 "freed or closed from a request that a loss ends");
        part();

        synced();
        act_on = 'L', act = what;
        peer_hang_up(&peer);
        UNTIL(act_on == 0);
        part();

        begin();
        act_on = 'a', act = what;
        call("guest-ping", "a");
        UNTIL(act_on == 0);
        ok(told("a UNKNOWN"), "freed or closed from a request without a connection");
        vf_qga_free(qga);
    }

    synced();
    act_on = 'a', act = 'n';
    call("guest-ping", "a");
    peer_say(&peer, "{\"return\": 1}\n");
    UNTIL(told("a OK 1"));
    peer_expect(&peer, "{\"execute\":\"guest-next\"}\n");
    peer_say(&peer, "{\"return\": 2}\n");
    UNTIL(told("n OK"));
    is_story("a OK 1\nn OK 2\n", "the next request from within a reply");
    act_on = 'a', act = 'n';
    call("guest-ping", "a");
    peer_say(&peer, "garbage");
    UNTIL(told("a UNKNOWN"));
    answer_sync(hear_sync());
    peer_say(&peer, "{\"return\": 2}\n");
    UNTIL(told("n OK"));
    is_story("a UNKNOWN the guest agent sent no JSON (\"garbage\")\nn OK 2\n",
             "the next request from within one that garbage ended");
    act_on = 'a', act = 'o';
    call("guest-ping", "a");
    peer_hang_up(&peer);
    UNTIL(told("o OK"));
    is_story(
        "a UNKNOWN the connection to the guest agent is gone: it was closed by the other side\n"
        "o OK nothing\n",
        "opened anew from a request that a loss ended: the loss is not told");
    peer_accept(&peer);
    act_on = 'L', act = 'o';
    peer_hang_up(&peer);
    UNTIL(told("o OK"));
    ok(peer_accept(&peer), "opened anew from the loss");
    part();

    synced();
    act_on = 'a', act = 'n';
    call("guest-ping", "a");
    peer_expect(&peer, "ping");
    peer_hang_up(&peer);
    UNTIL(told("LOST"));
    UNTIL(told("n UNKNOWN"));
    ok(told("n UNKNOWN there is no connection") && told("LOST"),
       "the next request from one that a loss ended");
    part();
    vf_qga_free(NULL);
}

static int beats;

static void
on_beat(struct ev_loop *of, struct ev_timer *timer, int revents)
{
    (void)of, (void)timer, (void)revents;
    beats++;
}

/* A guest that sends without end, to a client that waits for a sync. */
static void
test_flood(void)
{
    static const char *const patterns[] = {"garbage ", "\xff{\"return\":1}\n",
                                           "{\"return\":[{\"a\":", "\xff"};

    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        struct ev_timer beat;

        meet();
        log_text[0] = '\0';
        pid_t child = peer_flood(&peer, patterns[i], strlen(patterns[i]));

        call("guest-fsfreeze-thaw", "a");
        beats = 0;
        ev_timer_init(&beat, on_beat, 0.005, 0.005);
        ev_timer_start(loop, &beat);
        turn_for(60);
        UNTIL(beats > 0);
        ev_timer_stop(loop, &beat);
        ok(beats >= 1 && vf_qga_is_open(qga), "a flood does not starve the loop");
        is_story("", "and is not taken for an answer");
        ok(hear_sync() != 0, "what is written gets out");
        peer_flood_ends(child);
        part();
    }
}

int
main(void)
{
    test_begin();
    test_open();
    test_first_call();
    test_wrong_sync();
    test_late_freeze();
    test_answers();
    test_too_large();
    test_unasked();
    test_hang_up();
    test_loss();
    test_callbacks_that_act();
    test_flood();
    return test_end();
}
