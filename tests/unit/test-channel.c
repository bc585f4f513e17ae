/* SPDX-License-Identifier: MIT */
#include "wire/channel.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include "peer.h"
#include "util/mem.h"
#include "wire/dial.h"

/* What the hooks told, one line each. */
static char story[1 << 16];
static bool inside;
static int messages;

static const struct vf_log no_log;
static const struct vf_frame_rules plain = {1 << 20, 1000, 10, false};
static const struct vf_frame_rules marked = {1 << 20, 1000, 10, true};

/* What a hook does to the channel: to each a letter. */
static struct vf_channel *channel;
static char act_on, act;
static const char *act_path;

static void tell(char hook, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void
tell(char hook, const char *format, ...)
{
    size_t length = strlen(story);
    va_list arguments;

    if (inside)
        snprintf(story + length, sizeof story - length, "INSIDE A CALL ");
    length = strlen(story);
    va_start(arguments, format);
    vsnprintf(story + length, sizeof story - length, format, arguments);
    va_end(arguments);
    if (hook != act_on)
        return;
    act_on = 0;
    switch (act) {
    case 'f':
        vf_channel_free(channel);
        channel = NULL;
        break;
    case 'c':
        vf_channel_close(channel);
        break;
    case 'r':
        vf_channel_close(channel);
        vf_channel_open(channel, act_path);
        break;
    case 's':
        vf_channel_skip(channel);
        break;
    }
}

static void
on_connected(void *owner)
{
    (void)owner;
    tell('c', "connected\n");
}

static void
on_message(void *owner, struct json_object *message)
{
    (void)owner;
    messages++;
    if (messages < 300)
        tell('m', "%s\n", json_object_to_json_string_ext(message, JSON_C_TO_STRING_PLAIN));
}

static void
on_marker(void *owner)
{
    (void)owner;
    tell('k', "marker\n");
}

static void
on_garbled(void *owner, const char *what, const char *sample)
{
    (void)owner;
    tell('g', "garbled: %s (%.30s)\n", what, sample);
}

static void
on_lost(void *owner, const char *why)
{
    (void)owner;
    tell('l', "lost: %s\n", why);
}

static const struct vf_channel_hooks hooks = {
    .connected = on_connected,
    .message = on_message,
    .marker = on_marker,
    .garbled = on_garbled,
    .lost = on_lost,
};

static bool
told(const char *part)
{
    return strstr(story, part) != NULL;
}

static void
begin(const struct vf_frame_rules *rules)
{
    story[0] = '\0';
    messages = 0;
    channel = vf_channel_new(loop, "test", &hooks, rules, NULL, &no_log);
}

static void
dial(const char *path)
{
    inside = true;
    vf_channel_open(channel, path);
    inside = false;
}

static void
end(void)
{
    vf_channel_free(channel);
    channel = NULL;
}

/* A channel that is connected to the peer. */
static void
meet(struct peer *peer, const struct vf_frame_rules *rules)
{
    begin(rules);
    peer_listen(peer, "socket");
    dial(peer->path);
    if (!peer_accept(peer) || !UNTIL(told("connected\n")))
        exit(1);
    story[0] = '\0';
}

static void
part(struct peer *peer)
{
    end();
    peer_end(peer);
}

static void
fails(const char *path, const char *why)
{
    begin(&plain);
    dial(path);
    UNTIL(story[0]);
    char *wanted = vf_printf("lost: %s\n", why);

    if (!ok(strcmp(story, wanted) == 0, "%s: %s", path + (path[0] == '/' ? strlen(folder) : 0),
            why))
        diag("%s", story);
    free(wanted);
    ok(vf_channel_fd(channel) == -1 && !vf_channel_is_open(channel), "and it is closed");
    end();
}

static void
test_failures(void)
{
    char *path = vf_printf("%s/nothing", folder);

    fails(path, "No such file or directory");
    fails("", "No such file or directory");
    fails(folder, "it is not a socket");
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    fails(path, "it is not a socket");
    char *below = vf_printf("%s/below", path);

    fails(below, "Not a directory");
    free(below);
    int fd = bound_socket(path, SOCK_DGRAM | SOCK_NONBLOCK);

    fails(path, "it is not a stream socket");
    close(fd);
    fd = bound_socket(path, SOCK_STREAM | SOCK_NONBLOCK);
    long long start = now_ms();

    fails(path, "nobody listens on it (is QEMU running?)");
    ok(now_ms() - start >= 150, "a refusal is doubted for a while");
    close(fd);
    fails("tcp:", "it is not of the form tcp:HOST:PORT with a numeric HOST");
    fails("tcp:localhost:1", "it is not of the form tcp:HOST:PORT with a numeric HOST");
    fails("tcp::1", "it is not of the form tcp:HOST:PORT with a numeric HOST");
    fails("tcp:127.0.0.1", "it is not of the form tcp:HOST:PORT with a numeric HOST");
    fails("tcp:[]:1", "it is not of the form tcp:HOST:PORT with a numeric HOST");
    fails("tcp:127.0.0.1:http", "it is not of the form tcp:HOST:PORT with a numeric HOST");
    fails("tcp:127.0.0.1:1", "nobody listens on it (is QEMU running?)");
    has_str(vf_dial_words(EACCES), "Permission denied", "words for a lack of rights");
    free(path);
}

static void
test_late_listener(void)
{
    struct peer peer;

    begin(&plain);
    peer_listen(&peer, "late");
    close(peer.listener);
    peer.listener = bound_socket(peer.path, SOCK_STREAM | SOCK_NONBLOCK);
    dial(peer.path);
    turn_for(50);
    is_str(story, "", "bound, but not listening yet: no failure");
    listen(peer.listener, 1);
    UNTIL(story[0]);
    is_str(story, "connected\n", "connected as soon as it listens");
    part(&peer);
}

static void
test_full_backlog(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct peer peer;
    int others[8], count = 0;
    bool full = false;

    peer_listen(&peer, "full");
    strcpy(address.sun_path, peer.path);
    for (; count < 8; count++) {
        others[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (connect(others[count], (struct sockaddr *)&address, sizeof address) < 0) {
            full = errno == EAGAIN;
            close(others[count]);
            break;
        }
    }
    ok(full, "the queue is full");
    begin(&plain);
    dial(peer.path);
    turn_for(300);
    is_str(story, "", "connecting goes on beyond the patience for a refusal");
    peer_accept(&peer);
    UNTIL(story[0]);
    is_str(story, "connected\n", "connected when there is room");
    is_int(vf_channel_peer_pid(channel), getpid(), "the peer's process is known");
    while (count-- > 0)
        close(others[count]);
    part(&peer);
}

static void
test_long_path(void)
{
    char long_name[90], *path;
    struct peer peer;

    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = '\0';
    path = vf_printf("%s/%s", folder, long_name);
    mkdir(path, 0700);
    free(path);
    path = vf_printf("%s/%s/%s", folder, long_name, long_name);
    peer_listen(&peer, "short");
    rename(peer.path, path);
    begin(&plain);
    dial(path);
    UNTIL(story[0]);
    is_str(story, "connected\n", "a path of 200 bytes");
    end();
    fails(peer.path, "No such file or directory");
    peer_end(&peer);
    unlink(path);
    free(path);
}

static void
test_tcp(int family, const char *host)
{
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    void *address = family == AF_INET ? (void *)&four : (void *)&six;
    socklen_t length = family == AF_INET ? sizeof four : sizeof six;
    struct peer peer = {.fd = -1};

    peer.listener = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (peer.listener < 0 || bind(peer.listener, address, length) < 0 ||
        listen(peer.listener, 1) < 0 || getsockname(peer.listener, address, &length) < 0) {
        ok(true, "tcp to %s # SKIP no such network here", host);
        close(peer.listener);
        return;
    }
    char *path =
        vf_printf("tcp:%s:%d", host, ntohs(family == AF_INET ? four.sin_port : six.sin6_port));

    begin(&plain);
    dial(path);
    peer_accept(&peer);
    peer_say(&peer, "{\"a\":1}");
    UNTIL(messages > 0);
    ok(strcmp(story, "connected\n{\"a\":1}\n") == 0, "%s: connected, and a message", path);
    is_int(vf_channel_peer_pid(channel), 0, "the process behind it is not known");
    part(&peer);
    free(path);
}

static void
test_framing(void)
{
    static const char text[] =
        " \r\n{\"a\":[1,{\"b\":\"}\\\"\\\\\"}]}\r\n{\"k\":\"\xc3\xa4\xf0\x9f\x98\x80\"}"
        "{ \"p\" : {\n  \"q\" : [\n    null,\r\n    -1.5 ]\n\t}\n}\r\n{}";
    static const char wanted[] =
        "{\"a\":[1,{\"b\":\"}\\\"\\\\\"}]}\n{\"k\":\"\xc3\xa4\xf0\x9f\x98\x80\"}\n"
        "{\"p\":{\"q\":[null,-1.5]}}\n{}\n";
    struct peer peer;
    int wrong = 0;

    meet(&peer, &plain);
    peer_say(&peer, text);
    UNTIL(messages == 4);
    is_str(story, wanted, "four messages in one read, pretty-printed ones among them");
    story[0] = '\0', messages = 0;
    peer_say_slowly(&peer, text);
    UNTIL(messages == 4);
    is_str(story, wanted, "the same byte by byte");
    for (size_t split = 1; split < sizeof text - 1; split++) {
        story[0] = '\0', messages = 0;
        peer_put(&peer, text, split);
        ev_run(loop, EVRUN_NOWAIT);
        ev_run(loop, EVRUN_NOWAIT);
        peer_put(&peer, text + split, sizeof text - 1 - split);
        UNTIL(messages == 4);
        wrong += strcmp(story, wanted) != 0;
    }
    is_int(wrong, 0, "the same in two parts, split anywhere");
    part(&peer);
}

static void
garbles(const struct vf_frame_rules *rules, const char *bytes, size_t length, const char *wanted,
        const char *what)
{
    struct peer peer;

    meet(&peer, rules);
    peer_put(&peer, bytes, length);
    UNTIL(told("garbled"));
    peer_say(&peer, "{\"after\":1}");
    turn_for(3);
    is_str(story, wanted, what);
    part(&peer);
}

#define GARBLES(rules, bytes, wanted, what) garbles(rules, bytes, sizeof bytes - 1, wanted, what)

static void
test_garbage(void)
{
    static const struct vf_frame_rules small = {64, 8, 4, false};

    GARBLES(&plain, "HTTP/1.1 400 Bad Request\r\n",
            "garbled: no JSON (HTTP/1.1 400 Bad Request  )\n", "a web server");
    GARBLES(&plain, "\xff\xfb\x01", "garbled: no JSON (?? )\n", "a marker where there are none");
    GARBLES(&plain, "\033[2J\x9b", "garbled: no JSON ( [2J?)\n", "controls are not repeated");
    GARBLES(&plain, "[1]", "garbled: no JSON ([1])\n", "an array");
    GARBLES(&plain, "17 ", "garbled: no JSON (17 )\n", "a number");
    GARBLES(&plain, "{}}", "{}\ngarbled: no JSON (})\n", "a message too many closed");
    GARBLES(&plain, "{\"a\":]}", "garbled: no JSON ({\"a\":]})\n", "a wrong bracket");
    GARBLES(&plain, "{\"a\":1,}", "garbled: no JSON ({\"a\":1,})\n", "a comma too many");
    GARBLES(&plain, "{\"a\":\"\n\"}", "garbled: no JSON ({\"a\":\" \"})\n",
            "a control in a string");
    GARBLES(&plain, "{\"a\":\0}", "garbled: no JSON ({\"a\": })\n", "a NUL");
    GARBLES(&plain, "{\"a\":\"\xc3(\"}", "garbled: no JSON ({\"a\":\"?(\"})\n", "no UTF-8");
    GARBLES(&small, "{\"a\":[[[1]]]}{\"a\":[[[[1]]]]}",
            "{\"a\":[[[1]]]}\ngarbled: a message nested deeper than 4 levels ({\"a\":[[[[1]]]]})\n",
            "as deep as allowed, and one level more");
    GARBLES(&small, "{\"a\":[1,2,3,4,5,6,7]}{\"a\":[1,2,3,4,5,6,7,8]}",
            "{\"a\":[1,2,3,4,5,6,7]}\n"
            "garbled: a message of more than 8 values ({\"a\":[1,2,3,4,5,6,7,8]})\n",
            "as many values as allowed, and one more");
    GARBLES(&small,
            "{\"a\":\"01234567890123456789012345678901234567890123456789012345\"}"
            "{\"a\":\"012345678901234567890123456789012345678901234567890123456\"}",
            "{\"a\":\"01234567890123456789012345678901234567890123456789012345\"}\n"
            "garbled: a message larger than 0 MiB ({\"a\":\"012345678901234567890123)\n",
            "as large as allowed, and one byte more");
}

static void
test_markers(void)
{
    struct peer peer;

    meet(&peer, &marked);
    peer_say(&peer, "{\"half\":\xff{\"a\":\"x\xff\xff{}");
    UNTIL(messages == 1);
    is_str(story, "marker\nmarker\nmarker\n{}\n", "a marker drops what has begun, in strings too");
    story[0] = '\0';
    peer_say(&peer, "nonsense {\"a\":1} }\xff{\"b\":2}");
    UNTIL(messages == 2);
    is_str(story, "garbled: no JSON (nonsense {\"a\":1} }?{\"b\":2})\nmarker\n{\"b\":2}\n",
           "after garbage, all is skipped up to the marker");
    story[0] = '\0';
    peer_say(&peer, "{\"hal");
    turn_for(2);
    vf_channel_skip(channel);
    peer_say(&peer, "f\":1}{\"skipped\":1}");
    turn_for(2);
    is_str(story, "", "skipping drops a message that has begun, and all behind it");
    peer_say(&peer, "}}\xff{\"c\":3}");
    UNTIL(messages == 3);
    is_str(story, "marker\n{\"c\":3}\n", "up to the marker");
    story[0] = '\0';
    act_on = 'm', act = 's';
    peer_say(&peer, "{\"d\":4}{\"skipped\":1}\xff{\"e\":5}");
    UNTIL(messages == 5);
    is_str(story, "{\"d\":4}\nmarker\n{\"e\":5}\n", "skipping from within a hook");
    part(&peer);
}

/* `text` makes the hook `on` fire, which then does `what`; nothing may follow. */
static void
acts(char on, char what, const char *text, const char *wanted, const char *name)
{
    struct peer peer;

    begin(&marked);
    peer_listen(&peer, "acts");
    act_on = on, act = what, act_path = peer.path;
    dial(peer.path);
    peer_accept(&peer);
    if (text)
        peer_say(&peer, text);
    else
        peer_hang_up(&peer);
    UNTIL(act_on == 0);
    turn_for(2);
    ok(strcmp(story, wanted) == 0, "%s: %s", name, what == 'f' ? "free" : "close");
    if (strcmp(story, wanted) != 0)
        diag("%s", story);
    part(&peer);
}

static void
test_hooks_that_close(void)
{
    for (int i = 0; i < 2; i++) {
        char what = "fc"[i];

        acts('c', what, "{}", "connected\n", "from connected");
        acts('m', what, "{\"a\":1}{\"b\":2}", "connected\n{\"a\":1}\n", "from a message");
        acts('k', what, "\xff{\"b\":2}", "connected\nmarker\n", "from a marker");
        acts('g', what, "x\xff{\"b\":2}", "connected\ngarbled: no JSON (x?{\"b\":2})\n",
             "from garbage");
        acts('l', what, NULL, "connected\nlost: it was closed by the other side\n", "from a loss");
    }
    struct peer peer;

    meet(&peer, &marked);
    act_on = 'm', act = 'r', act_path = peer.path;
    peer_say(&peer, "{\"a\":1}{\"b\":2}");
    UNTIL(messages == 1);
    peer_hang_up(&peer);
    peer_accept(&peer);
    peer_say(&peer, "{\"c\":3}");
    UNTIL(messages == 2);
    is_str(story, "{\"a\":1}\nconnected\n{\"c\":3}\n", "closed and opened anew from a message");
    story[0] = '\0';
    act_on = 'l';
    peer_hang_up(&peer);
    UNTIL(told("connected"));
    is_str(story, "lost: it was closed by the other side\nconnected\n", "opened from a loss");
    part(&peer);
}

static void
test_end_of_stream(void)
{
    struct peer peer;

    meet(&peer, &plain);
    peer_say(&peer, "{\"a\":1}{\"b\":");
    peer_hang_up(&peer);
    UNTIL(told("lost"));
    is_str(story, "{\"a\":1}\nlost: it was closed in the middle of a message\n",
           "the end comes within a message");
    part(&peer);

    meet(&peer, &plain);
    peer_say(&peer, "{\"last\":\"words\"}");
    peer_hang_up(&peer);
    inside = true;
    bool taken = vf_channel_send(channel, "{}", 2) && vf_channel_send(channel, "{}", 2);
    inside = false;
    ok(taken && vf_channel_is_open(channel), "sending to a peer that is gone tells nothing yet");
    UNTIL(told("lost"));
    is_str(story, "{\"last\":\"words\"}\nlost: it was closed by the other side\n",
           "its last words are heard, then it is lost");
    part(&peer);

    meet(&peer, &plain);
    shutdown(peer.fd, SHUT_RD);
    vf_channel_send(channel, "{}", 2);
    UNTIL(told("lost"));
    is_str(story, "lost: it takes nothing any more\n", "a peer that takes nothing is lost");
    part(&peer);
}

static void
test_backlog(void)
{
    static char block[1 << 16];
    struct peer peer;
    size_t taken = 0, heard = 0, wrong = 0;

    meet(&peer, &plain);
    inside = true;
    for (;; taken += sizeof block) {
        for (size_t i = 0; i < sizeof block; i++)
            block[i] = (char)((taken + i) % 251);
        if (!vf_channel_send(channel, block, sizeof block))
            break;
    }
    inside = false;
    ok(taken >= VF_CHANNEL_BACKLOG - sizeof block && taken < VF_CHANNEL_BACKLOG + (4 << 20),
       "what a peer does not read is kept up to the cap");
    for (long long stop = now_ms() + PATIENCE_MS; heard < taken && now_ms() < stop;) {
        peer.length = 0;
        peer_hear(&peer);
        for (size_t i = 0; i < peer.length; i++)
            wrong += peer.heard[i] != (char)((heard + i) % 251);
        heard += peer.length;
        ev_run(loop, EVRUN_NOWAIT);
    }
    ok(heard == taken && wrong == 0, "and arrives whole and in order");
    ok(vf_channel_send(channel, "{}", 2), "then there is room again");
    is_str(story, "", "and nothing was told");
    part(&peer);
}

/* Freed memory that the sanitizer holds back would count as growth. */
__attribute__((visibility("default"))) const char *__asan_default_options(void);

const char *
__asan_default_options(void)
{
    return "quarantine_size_mb=1";
}

static long
resident_kb(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    long pages = 0;

    if (!file || fscanf(file, "%*d %ld", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static int beats;

static void
on_beat(struct ev_loop *of, struct ev_timer *timer, int revents)
{
    (void)of, (void)timer, (void)revents;
    beats++;
}

static void
flood(const struct vf_frame_rules *rules, const char *pattern, size_t length, const char *what)
{
    struct ev_timer beat;
    struct peer peer;

    meet(&peer, rules);
    long before = resident_kb();
    pid_t child = peer_flood(&peer, pattern, length);

    beats = 0;
    ev_timer_init(&beat, on_beat, 0.005, 0.005);
    ev_timer_start(loop, &beat);
    turn_for(150);
    UNTIL(beats > 0);
    ev_timer_stop(loop, &beat);
    long grown = resident_kb() - before;

    if (!ok(grown < 16000, "%s does not grow memory", what))
        diag("%ld KiB", grown);
    if (!ok(beats >= 1, "%s does not starve the loop", what))
        diag("%d beats", beats);
    peer_flood_ends(child);
    part(&peer);
}

static void
test_large(void)
{
    static const struct vf_frame_rules large = {4 << 20, 1000, 10, false};
    size_t size = (4 << 20) - 100;
    char *text = vf_alloc(size + 1);
    struct peer peer;

    memset(text, 'x', size);
    memcpy(text, "{\"a\":\"", 6);
    memcpy(text + size - 2, "\"}", 2);
    meet(&peer, &large);
    act_on = 'm', act = 0;
    long long start = now_ms();

    messages = 300;
    peer_say(&peer, text);
    UNTIL(messages == 301);
    is_int(messages, 301, "a message of almost 4 MiB");
    diag("in %lld ms", now_ms() - start);
    part(&peer);
    free(text);
    act_on = 0;
}

static void
test_line(void)
{
    char line[10];

    vf_channel_line(line, sizeof line, "123456789", 9);
    is_str(line, "123456789", "a line that just fits");
    vf_channel_line(line, sizeof line, "1234567890", 10);
    is_str(line, "123456...", "a line that does not");
    vf_channel_line(line, sizeof line, "12345\xc3\xa4 7890", 12);
    is_str(line, "12345...", "no character is cut in two");
    vf_channel_line(line, sizeof line, "a\0b\r\n\x7f\xff", 7);
    is_str(line, "a b  ??", "one line, fit to be shown");
}

int
main(void)
{
    test_begin();
    test_failures();
    test_late_listener();
    test_full_backlog();
    test_long_path();
    test_tcp(AF_INET, "127.0.0.1");
    test_tcp(AF_INET6, "[::1]");
    test_framing();
    test_garbage();
    test_markers();
    test_hooks_that_close();
    test_end_of_stream();
    test_backlog();
    flood(&marked, "garbage", 7, "a flood of garbage");
    flood(&marked, "{\"a\":{\"b\":", 10, "a flood of openings");
    flood(&marked, "\xff{\"r\":1}", 8, "a flood of marked messages");
    flood(&plain, "{\"event\":\"X\",\"data\":{}}\r\n", 25, "a flood of events");
    test_large();
    test_line();
    return test_end();
}
