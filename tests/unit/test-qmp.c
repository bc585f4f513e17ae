/* SPDX-License-Identifier: MIT */
#include "wire/qmp.h"

#include "peer.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "wire/frame.h"

#define GREETING                                                                                   \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, "             \
    "\"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define GREETING_NO_OOB "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"

static struct vf_qmp *qmp;
static struct peer peer;
static bool inside;
/* For QEMU's greeting: generous, but where a test waits for it to pass. */
static int limit_ms = 3000;

/* What the callbacks told, one line each. */
static char story[1 << 14];
/* Who does something in its callback, and what. */
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
        vf_qmp_free(qmp);
        qmp = NULL;
        break;
    case 'c':
        vf_qmp_close(qmp);
        break;
    case 'o':
        vf_qmp_open(qmp, peer.path, on_reply, "o");
        break;
    case 's':
        vf_qmp_send(qmp, "query-sent", NULL, on_reply, "s");
        break;
    }
}

/* `data` names the request. */
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
on_event(void *owner, const char *name, struct json_object *data)
{
    (void)owner;
    tell('E', "EVENT %s %s\n", name, json_object_to_json_string_ext(data, JSON_C_TO_STRING_PLAIN));
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
    static const struct vf_qmp_hooks hooks = {.event = on_event, .lost = on_lost};

    qmp = vf_qmp_new(loop, &hooks, NULL, &logged);
    vf_qmp_set_greeting_ms(qmp, limit_ms);
    story[0] = log_text[0] = '\0';
}

static void
end(void)
{
    vf_qmp_free(qmp);
    qmp = NULL;
}

static void
dial(const char *path)
{
    inside = true;
    vf_qmp_open(qmp, path, on_reply, "open");
    inside = false;
}

/* Begins a connection, with the peer's first words. */
static void
meet(const char *first)
{
    begin();
    peer_listen(&peer, "qmp");
    dial(peer.path);
    peer_accept(&peer);
    peer_say(&peer, first);
}

static void
part(void)
{
    end();
    peer_end(&peer);
}

static uint64_t
ask(const char *command, const char *name)
{
    inside = true;
    uint64_t handle = vf_qmp_send(qmp, command, NULL, on_reply, (void *)name);
    inside = false;
    return handle;
}

/* Hears the next request and remembers its id. */
static char id[64];

static bool
hear(const char *command)
{
    char *wanted = vf_printf("\"%s\"", command);
    bool heard = peer_expect(&peer, wanted) && peer_expect(&peer, "\"id\":\"");
    char *end_of_id = NULL;

    free(wanted);
    if (!heard || !UNTIL((peer_hear(&peer), (end_of_id = strchr(peer.heard, '"')) != NULL)))
        return false;
    snprintf(id, sizeof id, "%.*s", (int)(end_of_id - peer.heard), peer.heard);
    return peer_expect(&peer, "\"}");
}

/* Says it with $ for the id. */
static void
answer(const char *text)
{
    const char *at = strchr(text, '$');

    if (at) {
        peer_put(&peer, text, (size_t)(at - text));
        peer_say(&peer, id);
        text = at + 1;
    }
    peer_say(&peer, text);
}

/* A ready connection, with an empty story. */
static void
ready(void)
{
    meet(GREETING);
    hear("qmp_capabilities");
    answer("{\"return\": {}, \"id\": \"$\"}\r\n");
    UNTIL(told("open"));
    if (!vf_qmp_ready(qmp))
        exit(1);
    story[0] = '\0';
}

static void
test_open(void)
{
    begin();
    ok(!vf_qmp_ready(qmp) && vf_qmp_fd(qmp) == -1 && vf_qmp_peer_pid(qmp) == 0, "closed at first");
    end();

    limit_ms = 300;
    meet(GREETING);
    UNTIL((peer_hear(&peer), strchr(peer.heard, '}')));
    has_str(peer.heard,
            "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]},\"id\":\"",
            "oob is enabled where it is offered");
    hear("qmp_capabilities");
    ok(!vf_qmp_ready(qmp), "not ready before the answer");
    ask("x-early", "early");
    UNTIL(told("early"));
    is_story("early UNKNOWN there is no connection to QEMU\n", "and nothing can be asked");
    answer("{\"return\": {}, \"id\": \"$\"}\r\n");
    UNTIL(told("open"));
    is_story(
        "open OK {\"version\":{\"qemu\":{\"micro\":22,\"minor\":2,\"major\":7},\"package\":\"\"},"
        "\"capabilities\":[\"oob\"]}\n",
        "ready, with the greeting");
    ok(vf_qmp_ready(qmp) && vf_qmp_has_oob(qmp), "and oob");
    is_int(vf_qmp_peer_pid(qmp), getpid(), "the peer's process");
    ok(vf_qmp_fd(qmp) >= 0, "a descriptor");
    has_str(log_text, "1 qmp: negotiating -> ready\n", "state changes are logged");
    has_str(log_text, "2 qmp < {\"QMP\": {", "and messages received");
    has_str(log_text, "2 qmp > {\"execute\":\"qmp_capabilities\"", "and sent");
    turn_for(350);
    is_story("", "the time limit is off when ready");
    ask("query-status", "a");
    hear("query-status");
    answer("{\"return\": {}, \"id\": \"$\"}");
    UNTIL(told("a OK"));
    limit_ms = 3000;
    vf_qmp_set_greeting_ms(qmp, limit_ms);
    vf_qmp_close(qmp);
    ok(!vf_qmp_ready(qmp) && !vf_qmp_has_oob(qmp) && vf_qmp_fd(qmp) == -1, "closed");
    turn_for(3);
    is_story("a OK {}\n", "and nobody is told of that");
    peer_hang_up(&peer);
    dial(peer.path);
    peer_accept(&peer);
    peer_say(&peer, GREETING_NO_OOB);
    UNTIL((peer_hear(&peer), strchr(peer.heard, '}')));
    has_str(peer.heard, "{\"execute\":\"qmp_capabilities\",\"id\":\"",
            "opened again, and oob is not enabled where it is not offered");
    hear("qmp_capabilities");
    answer("{\"return\": {}, \"id\": \"$\"}\r\n");
    UNTIL(told("open"));
    ok(vf_qmp_ready(qmp) && !vf_qmp_has_oob(qmp), "ready without oob");
    part();
}

/* The words of an open that fails; $ stands for the path. */
static void
fails(const char *wanted, const char *what)
{
    char *words, *dollar = strchr(wanted, '$');

    UNTIL(told("open"));
    words = dollar ? vf_printf("open UNKNOWN %.*s%s%s\n", (int)(dollar - wanted), wanted, peer.path,
                               dollar + 1)
                   : vf_printf("open UNKNOWN %s\n", wanted);
    ok(!vf_qmp_ready(qmp) && vf_qmp_fd(qmp) == -1, "closed again: %s", what);
    turn_for(3);
    is_story(words, what);
    free(words);
}

static void
test_open_fails(void)
{
    int others[2];

    begin();
    peer_listen(&peer, "nobody");
    peer_end(&peer);
    peer.listener = -1;
    dial(peer.path);
    fails("cannot connect to QEMU's QMP socket $: No such file or directory", "no such path");
    close(open(peer.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    dial(peer.path);
    fails("cannot connect to QEMU's QMP socket $: it is not a socket", "a plain file");
    close(bound_socket(peer.path, SOCK_STREAM | SOCK_NONBLOCK));
    dial(peer.path);
    fails("cannot connect to QEMU's QMP socket $: nobody listens on it (is QEMU running?)",
          "a socket left behind");
    end();

    limit_ms = 60;
    meet("");
    fails("QEMU's QMP socket $: no greeting in 0.06 s: another client is connected to this QMP "
          "socket (QEMU serves one at a time), or QEMU hangs; close the other client or give QEMU "
          "a second -qmp socket",
          "no greeting");
    part();

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
    fails("cannot connect to QEMU's QMP socket $ in 0.06 s: other clients are connected to it and "
          "wait for it (QEMU serves one at a time); close them or give QEMU a second -qmp socket",
          "a full queue");
    close(others[0]);
    close(others[1]);
    part();

    limit_ms = 150;
    meet(GREETING);
    hear("qmp_capabilities");
    fails("QEMU's QMP socket $: QEMU greeted but does not answer (0.15 s): its main loop hangs",
          "no answer to qmp_capabilities");
    part();

    limit_ms = 3000;
    meet("HTTP/1.1 400 Bad Request\r\n\r\n");
    fails("$ does not speak QMP (it sent \"HTTP/1.1 400 Bad Request    \")", "a web server");
    part();
    meet("QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ");
    fails("$ is QEMU's monitor for people, it does not speak QMP (it sent \"QEMU 7.2.22 monitor - "
          "type 'help' for more information  (qemu) \"): give QEMU a -qmp socket",
          "the human monitor");
    part();
    meet("{\"hello\":\"\\u001b[2J\\u202e\"}");
    fails("$ does not speak QMP (it sent \"{\"hello\":\"\\u001b[2J?\?\?\"}\")", "other JSON");
    part();
    meet("\xff\xfb\x01\xff\xfb\x03\xff");
    fails("$ does not speak QMP (it sent \"?? ?? ?\")", "a telnet server");
    part();
    meet("{\"QMP\": {\"capab");
    peer_hang_up(&peer);
    fails("QEMU's QMP socket $: it was closed in the middle of a message before QEMU was ready",
          "the end within the greeting");
    part();
    meet(GREETING);
    hear("qmp_capabilities");
    peer_hang_up(&peer);
    fails("QEMU's QMP socket $: it was closed by the other side before QEMU was ready",
          "the end after the greeting");
    part();
    meet(GREETING);
    hear("qmp_capabilities");
    answer("{\"id\": \"$\", \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}");
    fails("QEMU's QMP socket $: QEMU refused qmp_capabilities: no", "capabilities refused");
    part();
    meet(GREETING);
    hear("qmp_capabilities");
    answer("nonsense");
    fails("QEMU's QMP socket $: QEMU sent no JSON (\"nonsense\")", "garbage after the greeting");
    part();
}

static void
test_leftovers(void)
{
    meet("{\"event\": \"RESUME\"}\r\n{\"return\": {}, \"id\": \"former\"}\r\n" GREETING);
    hear("qmp_capabilities");
    peer_say(&peer, "{\"return\": {\"stale\": 1}, \"id\": \"0123456789abcdef-1\"}\r\n"
                    "{\"return\": {\"stale\": 2}}\r\n"
                    "{\"error\": {\"class\": \"GenericError\", \"desc\": \"stale\"}}\r\n"
                    "{\"return\": {\"stale\": 3}, \"id\": 1}\r\n"
                    "{\"return\": {\"stale\": 4}, \"id\": null}\r\n"
                    "{\"error\": {\"desc\": \"stale\"}, \"id\": [\"x\"]}\r\n"
                    "{\"event\": \"STALE\"}\r\n");
    turn_for(3);
    is_story("", "a former client's answers are not for us");
    has_str(log_text, "qmp: dropped an answer to somebody else", "and logged");
    answer("{\"return\": {}, \"id\": \"$\"}\r\n");
    UNTIL(told("open OK"));
    ok(vf_qmp_ready(qmp), "ready all the same");
    story[0] = '\0';

    char *first = vf_strdup(id);

    ask("query-status", "a");
    hear("query-status");
    ok(strncmp(first, id, 17) == 0 && strcmp(first, id) != 0, "ids: one client, another request");
    char *other = vf_printf("{\"return\": 1, \"id\": \"%s0\"}{\"return\": 2, \"id\": \"%.17s0%s\"}"
                            "{\"return\": 3, \"id\": \"%s \"}{\"return\": 4, \"id\": \"%s\"}",
                            id, id, id + 17, id, first);

    peer_say(&peer, other);
    answer("{\"return\": {}, \"id\": \"$\"}\r\n");
    UNTIL(told("a OK {}"));
    is_story("a OK {}\n", "only the very same id counts");
    answer("{\"return\": {}, \"id\": \"$\"}\r\n");
    turn_for(3);
    is_story("", "and only once");
    free(other);
    part();

    ready();
    ok(strncmp(first, id, 17) != 0, "ids: another client");
    free(first);
    part();
}

static void
test_replies(void)
{
    ready();
    struct json_object *arguments = vf_json_strings("path", "/a/\xc3\xa4\n", NULL);

    vf_qmp_send(qmp, "x-test", arguments, on_reply, "a");
    UNTIL((peer_hear(&peer), strchr(peer.heard, '}')));
    has_str(peer.heard,
            "{\"execute\":\"x-test\",\"arguments\":{\"path\":\"/a/\xc3\xa4\\n\"},\"id\":\"",
            "one compact object");
    hear("x-test");
    answer("{\"return\": [1, {\"a\": null}], \"id\": \"$\"}\r\n");
    UNTIL(told("a"));
    is_story("a OK [1,{\"a\":null}]\n", "a result");
    ask("x-test", "a");
    hear("x-test");
    answer("{\"id\": \"$\", \"error\": {\"class\": \"GenericError\", \"desc\": \"Could not open "
           "'/\\u001b[31m\\u00e4\\n': no\"}}\r\n");
    UNTIL(told("a"));
    is_story("a REFUSED Could not open '/ [31m\xc3\xa4 ': no\n", "a refusal, fit to be shown");
    ask("x-test", "a");
    hear("x-test");
    answer("{\"id\": \"$\", \"error\": {}}\r\n");
    UNTIL(told("a"));
    is_story("a REFUSED it gave no reason\n", "a refusal without words");
    ask("x-test", "a");
    hear("x-test");
    answer("{\"id\": \"$\", \"return\": null}\r\n");
    UNTIL(told("a"));
    is_story("a OK nothing\n", "a result that is null");
    ask("x-test", "a");
    hear("x-test");
    answer("{\"id\": \"$\", \"answer\": 42}\r\n");
    UNTIL(told("a"));
    is_story("a UNKNOWN QEMU's answer is neither a result nor an error\n", "neither");
    ask("x-test", "a");
    hear("x-test");
    answer("{\"id\": \"$\", \"return\": 1, \"error\": {}}\r\n");
    UNTIL(told("a"));
    is_story("a UNKNOWN QEMU's answer is neither a result nor an error\n", "both");
    ask("x-test", "a");
    hear("x-test");
    answer("{\n    \"return\": {\n        \"pretty\": true\n    },\n    \"id\": \"$\"\n}\r\n");
    UNTIL(told("a"));
    is_story("a OK {\"pretty\":true}\n", "printed prettily");
    ask("x-test", "a");
    hear("x-test");
    char *text = vf_printf("{\"return\": \"\xc3\xa4\\\"}\", \"id\": \"%s\"}", id);

    peer_say_slowly(&peer, text);
    free(text);
    UNTIL(told("a"));
    is_story("a OK \"\xc3\xa4\\\"}\"\n", "byte by byte");
    part();
}

static void
test_events(void)
{
    ready();
    ask("x-test", "a");
    hear("x-test");
    answer("{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}\r\n"
           "{\"event\": \"JOB\", \"data\": {\"id\": \"j\"}}\r\n"
           "{\"return\": {}, \"id\": \"$\"}\r\n{\"event\": \"RESUME\", \"data\": 7}\r\n");
    UNTIL(told("RESUME"));
    is_story("EVENT STOP null\nEVENT JOB {\"id\":\"j\"}\na OK {}\nEVENT RESUME null\n",
             "events between replies, in their order");
    part();

    static const struct vf_qmp_hooks none;
    char *text;

    begin();
    end();
    qmp = vf_qmp_new(loop, &none, NULL, &logged);
    peer_listen(&peer, "none");
    dial(peer.path);
    peer_accept(&peer);
    peer_say(&peer, GREETING);
    hear("qmp_capabilities");
    text = vf_printf("{\"return\": {}, \"id\": \"%s\"}{\"event\": \"STOP\"}", id);
    peer_say(&peer, text);
    UNTIL(told("open"));
    peer_hang_up(&peer);
    UNTIL(!vf_qmp_ready(qmp));
    turn_for(3);
    ok(!vf_qmp_ready(qmp), "without hooks");
    free(text);
    part();
}

static void
test_idless(void)
{
    static const char stray[] =
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n";

    ready();
    peer_say(&peer, stray);
    turn_for(3);
    is_story("", "an error without an id, and nothing outstanding: dropped");
    ask("x-one", "a");
    hear("x-one");
    peer_say(&peer, "{\"return\": {}}\r\n");
    turn_for(3);
    is_story("", "a result without an id is dropped");
    peer_say(&peer, stray);
    UNTIL(told("a"));
    is_story("a UNKNOWN QEMU could not read the request: JSON parse error\n",
             "an error without an id ends the one request");
    ask("x-one", "a");
    ask("x-two", "b");
    peer_say(&peer, stray);
    turn_for(3);
    is_story("", "of two requests, neither");
    part();
}

static void
test_pipeline(void)
{
    static char name[20][16];
    char ids[20][64], wanted[400] = "";

    ready();
    for (int i = 0; i < 20; i++) {
        snprintf(name[i], sizeof name[i], "r%d", i);
        ask("x-test", name[i]);
    }
    for (int i = 0; i < 20; i++) {
        hear("x-test");
        strcpy(ids[i], id);
    }
    for (int i = 0; i < 20; i++) {
        char text[200];

        snprintf(text, sizeof text, "{\"return\": %d, \"id\": \"%.63s\"}", i, ids[i]);
        peer_say(&peer, text);
        snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), "r%d OK %d\n", i, i);
    }
    UNTIL(told("r19"));
    is_story(wanted, "twenty at a time");

    ask("x-slow", "a");
    hear("x-slow");
    strcpy(ids[0], id);
    vf_qmp_send_oob(qmp, "yank", NULL, on_reply, "oob");
    UNTIL((peer_hear(&peer), strchr(peer.heard, '}')));
    has_str(peer.heard, "{\"exec-oob\":\"yank\",\"id\":\"", "an out-of-band request");
    hear("yank");
    answer("{\"return\": {}, \"id\": \"$\"}");
    strcpy(id, ids[0]);
    answer("{\"return\": {}, \"id\": \"$\"}");
    UNTIL(told("a"));
    is_story("oob OK {}\na OK {}\n", "overtakes");
    part();
}

static void
test_forget(void)
{
    ready();
    uint64_t handle = ask("x-one", "a");

    ok(handle != 0, "a handle");
    hear("x-one");
    char *first = vf_strdup(id);

    vf_qmp_forget(qmp, handle);
    vf_qmp_forget(qmp, handle);
    vf_qmp_forget(qmp, 0);
    vf_qmp_forget(qmp, 99999);
    ask("x-two", "b");
    hear("x-two");
    peer_say(&peer, "{\"error\": {\"desc\": \"stray\"}}");
    turn_for(3);
    is_story("", "a forgotten request still counts as outstanding");
    char *text =
        vf_printf("{\"return\": 1, \"id\": \"%s\"}{\"return\": 2, \"id\": \"%s\"}", first, id);

    peer_say(&peer, text);
    UNTIL(told("b"));
    is_story("b OK 2\n", "its late answer is dropped");
    free(text);
    free(first);
    handle = ask("x-three", "c");
    vf_qmp_forget(qmp, handle);
    ask("x-four", "d");
    peer_hang_up(&peer);
    UNTIL(told("LOST"));
    is_story("d UNKNOWN the connection to QEMU is gone: it was closed by the other side\n"
             "LOST the connection to QEMU is gone: it was closed by the other side\n",
             "nor is it told of a loss");
    vf_qmp_forget(qmp, ask("x-five", "e"));
    turn_for(3);
    is_story("", "forgotten before it was told that there is no connection");
    part();
}

static void
test_loss(void)
{
    begin();
    ask("x-one", "a");
    is_story("", "without a connection: nothing from inside the call");
    UNTIL(told("a"));
    is_story("a UNKNOWN there is no connection to QEMU\n", "but soon after");
    end();

    ready();
    ask("x-one", "a");
    ask("x-two", "b");
    peer_say(&peer, "{\"return\": ");
    peer_hang_up(&peer);
    UNTIL(told("LOST"));
    is_story("a UNKNOWN the connection to QEMU is gone: it was closed in the middle of a message\n"
             "b UNKNOWN the connection to QEMU is gone: it was closed in the middle of a message\n"
             "LOST the connection to QEMU is gone: it was closed in the middle of a message\n",
             "the end within a message");
    part();

    ready();
    ask("x-one", "a");
    peer_say(&peer, "{\"return\": oops}");
    UNTIL(told("LOST"));
    is_story("a UNKNOWN QEMU sent no JSON (\"{\"return\": oops}\")\n"
             "LOST QEMU sent no JSON (\"{\"return\": oops}\")\n",
             "garbage ends the connection");
    part();

    ready();
    ask("quit", "a");
    hear("quit");
    answer("{\"event\": \"SHUTDOWN\"}{\"return\": {}, \"id\": \"$\"}");
    peer_hang_up(&peer);
    ask("x-late", "b");
    UNTIL(told("LOST"));
    is_story("EVENT SHUTDOWN null\na OK {}\n"
             "b UNKNOWN the connection to QEMU is gone: it was closed by the other side\n"
             "LOST the connection to QEMU is gone: it was closed by the other side\n",
             "the answer to quit is heard, though writing fails already");
    part();

    ready();
    for (int i = 0; i < 60; i++) {
        char *filler = vf_alloc(30001);

        memset(filler, 'x', 30000);
        vf_qmp_send(qmp, "x-fill", vf_json_strings("x", filler, NULL), on_reply, "fill");
        free(filler);
    }
    vf_qmp_send(qmp, "x-one", vf_json_strings("x", "y", NULL), on_reply, "a");
    UNTIL(told("fill"));
    has_str(story, "fill UNKNOWN QEMU does not read its QMP socket\n",
            "a QEMU that does not read is noticed");
    part();
}

static void
test_too_large(void)
{
    static char block[1 << 16];
    long long total = 0;

    ready();
    ask("x-one", "a");
    hear("x-one");
    memset(block, 'x', sizeof block);
    peer_say(&peer, "{\"return\": \"");
    for (; total < 64 << 20 && !told("LOST"); total += sizeof block) {
        peer_put(&peer, block, sizeof block);
        ev_run(loop, EVRUN_NOWAIT);
    }
    ok(total >= 4 << 20 && total < 5 << 20, "a reply without end is cut off");
    has_str(story, "a UNKNOWN QEMU sent a message larger than 4 MiB (\"{\"return\": \"xxx",
            "and so is told");
    part();

    ready();
    ask("x-one", "a");
    hear("x-one");
    peer_say(&peer, "{\"return\": ");
    for (int i = 0; i < 299; i++)
        peer_say(&peer, "{\"a\": ");
    peer_say(&peer, "1");
    for (int i = 0; i < 299; i++)
        peer_say(&peer, "}");
    answer(", \"id\": \"$\"}");
    UNTIL(told("a OK"));
    has_str(story, "a OK {\"a\":{\"a\":", "300 levels are read");
    story[0] = '\0';
    ask("x-one", "a");
    peer_say(&peer, "{\"return\": ");
    for (int i = 0; i < 300; i++)
        peer_say(&peer, "[");
    UNTIL(told("LOST"));
    has_str(story, "a UNKNOWN QEMU sent a message nested deeper than 300 levels (\"{\"return\": [[",
            "and no more");
    part();
}

/* Whoever tells `on` does `what`; then the story is at its end. */
static void
acts(char on, char what, const char *wanted, const char *name)
{
    act_on = on, act = what;
    ask("x-one", "a");
    ask("x-two", "b");
    hear("x-one");
    answer("{\"event\": \"E\"}{\"return\": {}, \"id\": \"$\"}{\"event\": \"F\"}");
    UNTIL(act_on == 0);
    turn_for(3);
    is_story(wanted, name);
}

static void
test_callbacks_that_act(void)
{
    for (int i = 0; i < 2; i++) {
        char what = "fc"[i];

        ready();
        acts('E', what, "EVENT E null\n", "freed or closed from an event");
        part();
        ready();
        acts('a', what, "EVENT E null\na OK {}\n", "freed or closed from a reply");
        part();

        meet(GREETING);
        act_on = 'o', act = what;
        hear("qmp_capabilities");
        answer("{\"return\": {}, \"id\": \"$\"}{\"event\": \"E\"}");
        UNTIL(act_on == 0);
        turn_for(3);
        is_int(told("EVENT"), false, "freed or closed from the open");
        part();

        meet("garbage");
        act_on = 'o', act = what;
        UNTIL(act_on == 0);
        part();
        limit_ms = 60;
        meet("");
        act_on = 'o', act = what;
        UNTIL(act_on == 0);
        limit_ms = 3000;
        ok(told("no greeting"), "freed or closed from an open that failed");
        part();

        ready();
        act_on = 'a', act = what;
        ask("x-one", "a");
        ask("x-two", "b");
        peer_hang_up(&peer);
        UNTIL(act_on == 0);
        turn_for(3);
        is_story("a UNKNOWN the connection to QEMU is gone: it was closed by the other side\n",
                 "freed or closed while a loss is told");
        part();

        ready();
        act_on = 'L', act = what;
        peer_say(&peer, "garbage");
        UNTIL(act_on == 0);
        turn_for(3);
        is_story("LOST QEMU sent no JSON (\"garbage\")\n", "freed or closed from the loss");
        part();
    }

    ready();
    acts('a', 's', "EVENT E null\na OK {}\nEVENT F null\n", "sending from a reply");
    ok(hear("x-two") && hear("query-sent"), "is sent");
    part();

    ready();
    act_on = 'a', act = 'o';
    ask("x-one", "a");
    ask("x-two", "b");
    peer_hang_up(&peer);
    UNTIL(act_on == 0);
    peer_accept(&peer);
    peer_say(&peer, GREETING);
    hear("qmp_capabilities");
    answer("{\"return\": {}, \"id\": \"$\"}");
    UNTIL(told("o OK"));
    *strstr(story, " {\"version") = '\0';
    is_story("a UNKNOWN the connection to QEMU is gone: it was closed by the other side\n"
             "b UNKNOWN the connection to QEMU is gone: it was closed by the other side\no OK",
             "opened anew while a loss is told: the others still end, the loss is not told");
    part();

    ready();
    act_on = 'L', act = 'o';
    peer_hang_up(&peer);
    UNTIL(told("LOST"));
    ok(peer_accept(&peer), "opened anew from the loss");
    act_on = 'o', act = 'o';
    peer_hang_up(&peer);
    UNTIL(told("o UNKNOWN"));
    ok(peer_accept(&peer), "opened anew from an open that failed");
    part();

    begin();
    peer_listen(&peer, "never");
    dial(peer.path);
    vf_qmp_close(qmp);
    turn_for(3);
    is_story("", "closed before it was connected");
    dial(peer.path);
    part();
    turn_for(3);
    is_story("", "freed before it was connected");
    vf_qmp_free(NULL);
}

#define PARSE_ERROR                                                                                \
    "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray '\\uFFFD'\"}}"

/* Primes a request, and takes what the peer has of it: true if that is all but the last byte. */
static bool
prime(const char *command)
{
    char *wanted = vf_printf("\"execute\":\"%s\",\"arguments\":{\"a\":\"b\"}", command);
    bool primed = vf_qmp_prime(qmp, command, vf_json_strings("a", "b", NULL));
    bool heard = peer_expect(&peer, wanted) && peer_expect(&peer, ",\"id\":\"");
    char *end_of_id = NULL;

    free(wanted);
    if (!heard || !UNTIL((peer_hear(&peer), (end_of_id = strchr(peer.heard, '"')) != NULL)))
        return false;
    snprintf(id, sizeof id, "%.*s", (int)(end_of_id - peer.heard), peer.heard);
    peer_expect(&peer, id);
    peer_expect(&peer, "\"");
    turn_for(5);
    peer_hear(&peer);
    return primed && vf_qmp_is_primed(qmp) && peer.length == 0;
}

static void
fire(const char *name)
{
    inside = true;
    vf_qmp_fire(qmp, on_reply, (void *)name);
    inside = false;
}

static void
unprime(void)
{
    inside = true;
    vf_qmp_unprime(qmp);
    inside = false;
}

static void
test_prime(void)
{
    ready();
    ask("x-before", "before");
    hear("x-before");
    peer_say(&peer, "{\"event\": \"E\"}");
    answer("{\"return\": 1, \"id\": \"$\"}");
    UNTIL(told("before OK"));
    story[0] = '\0';
    ok(prime("x-prime"), "all but the last byte is sent");
    peer_say(&peer, "{\"event\": \"F\"}");
    UNTIL(told("EVENT"));
    is_story("EVENT F null\n", "events arrive meanwhile");
    fire("p");
    ok(!vf_qmp_is_primed(qmp), "fired");
    UNTIL((peer_hear(&peer), peer.length > 0));
    is_str(peer.heard, "}", "the last byte, and no more");
    peer_expect(&peer, "}");
    answer("{\"return\": 2, \"id\": \"$\"}");
    UNTIL(told("p OK"));
    is_story("p OK 2\n", "it is answered like any other");
    ask("x-next", "n");
    ok(hear("x-next"), "others can be sent again");
    part();

    ready();
    ask("x-slow", "slow");
    hear("x-slow");
    char slow[64];

    memcpy(slow, id, sizeof slow);
    ok(prime("x-prime"), "primed while another waits for its answer");
    char *text = vf_printf("{\"return\": 3, \"id\": \"%s\"}", slow);

    peer_say(&peer, text);
    free(text);
    UNTIL(told("slow OK"));
    is_story("slow OK 3\n", "which comes");
    unprime();
    ok(!vf_qmp_is_primed(qmp), "taken back");
    UNTIL((peer_hear(&peer), peer.length > 0));
    ok(peer.length == 1 && (unsigned char)peer.heard[0] == 0xff, "by one byte");
    peer.length = 0;
    ask("x-after", "a");
    hear("x-after");
    peer_say(&peer, PARSE_ERROR);
    turn_for(5);
    is_story("", "the complaint is nobody's, though one other waits");
    answer("{\"return\": 4, \"id\": \"$\"}");
    UNTIL(told("a OK"));
    is_story("a OK 4\n", "and that is answered");
    ask("x-bad", "bad");
    hear("x-bad");
    peer_say(&peer, PARSE_ERROR);
    UNTIL(told("bad"));
    is_story(
        "bad UNKNOWN QEMU could not read the request: JSON parse error, stray '\xef\xbf\xbd'\n",
        "a second complaint is about what was sent since");
    unprime();
    turn_for(3);
    peer_hear(&peer);
    is_int((long long)peer.length, 0, "nothing to take back, nothing is sent");
    part();

    ready();
    prime("x-prime");
    unprime();
    ask("x-after", "a");
    peer_expect(&peer, "\xff");
    hear("x-after");
    answer("{\"return\": 5, \"id\": \"$\"}");
    UNTIL(told("a OK"));
    ask("x-bad", "bad");
    hear("x-bad");
    peer_say(&peer, PARSE_ERROR);
    UNTIL(told("bad"));
    is_story("a OK 5\nbad UNKNOWN QEMU could not read the request: JSON parse error, stray "
             "'\xef\xbf\xbd'\n",
             "a QEMU that did not complain before it answered will not do so any more");
    ok(prime("x-again"), "primed again");
    peer_hang_up(&peer);
    UNTIL(told("LOST"));
    ok(!vf_qmp_is_primed(qmp), "a lost connection takes it with it");
    story[0] = '\0';
    ok(!vf_qmp_prime(qmp, "x-prime", NULL) && !vf_qmp_is_primed(qmp), "none, no priming");
    unprime();
    turn_for(3);
    is_story("", "and nothing to take back");
    part();

    ready();
    prime("x-prime");
    act_on = 'p', act = 'f';
    fire("p");
    peer_hang_up(&peer);
    UNTIL(told("p UNKNOWN"));
    is_story("p UNKNOWN the connection to QEMU is gone: it was closed by the other side\n",
             "fired and lost: nobody knows");
    part();

    ready();
    prime("x-prime");
    vf_qmp_close(qmp);
    ok(!vf_qmp_is_primed(qmp), "closed while primed");
    part();
}

/* An answer that never comes, of a peer that lives and of one that does not. */
static void
test_silence(void)
{
    char first[64];

    ready();
    ask("x-lost", "a");
    hear("x-lost");
    ask("x-next", "b");
    hear("x-next");
    act_on = 'a', act = 's';
    answer("{\"return\": {}, \"id\": \"$\"}");
    UNTIL(told("LOST"));
    is_story("a UNKNOWN QEMU's answer to x-lost was lost: it has answered what it was asked later\n"
             "b UNKNOWN QEMU's answer to x-lost was lost: it has answered what it was asked later\n"
             "s UNKNOWN there is no connection to QEMU\n"
             "LOST QEMU's answer to x-lost was lost: it has answered what it was asked later\n",
             "an answer that is overtaken was lost, and nothing is believed any more");
    part();

    ready();
    vf_qmp_forget(qmp, ask("x-lost", "a"));
    ask("x-next", "b");
    hear("x-lost");
    hear("x-next");
    answer("{\"return\": {}, \"id\": \"$\"}");
    UNTIL(told("b"));
    is_story("b OK {}\n", "where nobody waits for it any more, that does no harm");
    part();

    ready();
    vf_qmp_set_silence_ms(qmp, 10, 60000);
    ask("x-lost", "a");
    hear("x-lost");
    ok(hear("query-version"), "a silent peer is asked something else");
    peer_say(&peer, "{\"event\": \"E\"}");
    answer(
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such command\"}, \"id\": \"$\"}");
    UNTIL(told("LOST"));
    is_story("EVENT E null\n"
             "a UNKNOWN QEMU's answer to x-lost was lost: it has answered what it was asked later\n"
             "LOST QEMU's answer to x-lost was lost: it has answered what it was asked later\n",
             "whatever it says to that");
    part();

    ready();
    vf_qmp_set_silence_ms(qmp, 10, 60000);
    ask("x-slow", "a");
    hear("x-slow");
    strcpy(first, id);
    ask("x-next", "b");
    hear("x-next");
    ok(hear("query-version"), "a slow one as well");
    char *text = vf_printf("{\"return\": 1, \"id\": \"%s\"}", first);

    peer_say(&peer, text);
    free(text);
    UNTIL(told("a"));
    is_story("a OK 1\n", "it answers after all");
    ok(hear("query-version"), "and is asked again for the next");
    part();

    ready();
    vf_qmp_set_silence_ms(qmp, 10, 20);
    ask("x-lost", "a");
    UNTIL(told("LOST"));
    is_story("a UNKNOWN QEMU has not answered to x-lost, nor to anything else, for 0.03 s\n"
             "LOST QEMU has not answered to x-lost, nor to anything else, for 0.03 s\n",
             "a peer that answers nothing is given up");
    part();

    ready();
    vf_qmp_set_silence_ms(qmp, 10, 20);
    prime("x-prime");
    turn_for(50);
    fire("p");
    UNTIL(told("LOST"));
    is_story("p UNKNOWN QEMU has not answered to x-prime, nor to anything else, for 0.03 s\n"
             "LOST QEMU has not answered to x-prime, nor to anything else, for 0.03 s\n",
             "what was primed first");
    part();

    ready();
    vf_qmp_set_silence_ms(qmp, 1, 1);
    turn_for(10);
    is_story("", "who is asked nothing may be silent");
    vf_qmp_forget(qmp, ask("x-one", "a"));
    turn_for(10);
    peer_hear(&peer);
    ok(vf_qmp_ready(qmp) && !strstr(peer.heard, "query-version"), "also if nobody waits any more");
    ask("x-slow", "slow");
    hear("x-one");
    hear("x-slow");
    prime("x-prime");
    turn_for(10);
    peer_hear(&peer);
    ok(vf_qmp_ready(qmp) && !strstr(peer.heard, "query-version"),
       "in the middle of a request nothing is asked");
    part();
}

static void
test_words(void)
{
    static const char *const locked[] = {"Failed to get \"write\" lock",
                                         "Failed to get shared \"consistent read\" lock",
                                         "disk: Failed to get \"write\" lock. Is another ..."};
    static const char *const others[] = {
        "", "Could not open '/vms/lock/web.qcow2': No such file or directory",
        "Failed to get memory", "Could not open '/\" lock': Failed to get anything"};

    for (size_t i = 0; i < sizeof locked / sizeof *locked; i++)
        ok(vf_words_tell_of_lock(locked[i]), "a lock: %s", locked[i]);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        ok(!vf_words_tell_of_lock(others[i]), "no lock: %s", others[i]);
}

static bool
has(const char *message)
{
    static const char *const wanted[] = {"cont", "query-block", "query-block-jobs", "stop"};
    size_t length = strlen(message);
    char *exact = memcpy(vf_alloc(length + !length), message, length); /* for the sanitizers */
    bool found = vf_frame_has(exact, length, wanted, sizeof wanted / sizeof *wanted);

    free(exact);
    return found;
}

/* Two words suffice in the answer. */
static void
look_for(const char *name)
{
    static const char *const words[] = {"cont", "stop"};

    vf_qmp_look_for(qmp, ask("query-commands", name), words, 2);
}

/* Long lists of which only some words matter. */
static void
test_look_for(void)
{
    ok(has("[\"stop\", \"query-block\", \"x\", \"query-block-jobs\", \"cont\"]"), "all words");
    ok(has("\"stop\"\"query-block\"\"a\\\"b\"\"query-block-jobs\"\"cont\""), "behind an escape");
    ok(!has("[\"stop\", \"query-block-jobs\", \"cont\"]"), "one is only the beginning of another");
    ok(!has("[\"stop\", \"query-block\", \"cont\", \"query-block-job\"]"), "one is cut short");
    ok(!has("[\"stop\", \"query-block\", \"query-block-jobs\", \"\\\"cont\\\"\"]"),
       "one stands inside of a string");
    ok(!has("stop cont query-block query-block-jobs"), "no strings");
    ok(!has("") && !has("\"") && !has("\"\\") && !has("\"\\\"") && !has("\"stop"), "broken ones");

    ready();
    look_for("a");
    ask("query-status", "b");
    hear("query-commands");
    peer_say(&peer, "{\"event\": \"STOP\", \"data\": {\"words\": [\"cont\", \"stop\"]}}");
    answer("{\"return\": [{\"name\": \"stop\"}, {\"name\": \"cont\"}], \"id\": \"other-1\"}");
    answer("{\"return\": [{\"name\": \"stop\"}, {\"name\": \"x\"}, {\"name\": \"cont\"}], \"id\": "
           "\"$\"}");
    hear("query-status");
    answer("{\"return\": [{\"name\": \"stop\"}, {\"name\": \"cont\"}], \"id\": \"$\"}");
    UNTIL(told("b OK"));
    is_story("EVENT STOP {\"words\":[\"cont\",\"stop\"]}\n"
             "a OK nothing\n"
             "b OK [{\"name\":\"stop\"},{\"name\":\"cont\"}]\n",
             "the words suffice, in the answer to this request alone");

    look_for("c");
    hear("query-commands");
    answer("{\"id\": \"$\", \"return\": [{\"name\": \"stop\"}]}");
    UNTIL(told("c OK"));
    is_story("c OK [{\"name\":\"stop\"}]\n", "one is missing: the answer");

    look_for("d");
    hear("query-commands");
    answer("{\"id\": \"$\", \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}");
    UNTIL(told("d REFUSED"));
    is_story("d REFUSED no\n", "an error");

    look_for("e");
    hear("query-commands");
    act_on = 'e', act = 'f';
    answer("{\"return\": [\"stop\", \"cont\"], \"id\": \"$\"}");
    UNTIL(told("e OK"));
    is_story("e OK nothing\n", "the callback may free the client");
    part();
}

int
main(void)
{
    test_begin();
    test_open();
    test_open_fails();
    test_leftovers();
    test_replies();
    test_events();
    test_idless();
    test_pipeline();
    test_forget();
    test_loss();
    test_too_large();
    test_callbacks_that_act();
    test_prime();
    test_silence();
    test_words();
    test_look_for();
    return test_end();
}
