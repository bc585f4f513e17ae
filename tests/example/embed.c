/* SPDX-License-Identifier: MIT
 *
 * vmfrost inside somebody else's libev loop: a program with work of its own takes a snapshot, and
 * its own timer goes on ticking all the while.
 *
 *     cc embed.c $(pkg-config --cflags --libs libvmfrost) -lev -o embed
 *     ./embed /run/web/qmp.sock before-upgrade
 */
#include <ev.h>
#include <stdio.h>

#include <vmfrost.h>

struct app {
    struct ev_loop *loop;
    struct vmfrost_op *op;
    int ticks, code;
};

/* The program's own work. */
static void
on_tick(struct ev_loop *loop, ev_timer *timer, int revents)
{
    struct app *app = timer->data;

    (void)loop;
    (void)revents;
    app->ticks++;
}

/* Ctrl-C does not abandon a frozen guest: the operation unwinds, then `done` fires. */
static void
on_interrupt(struct ev_loop *loop, ev_signal *signal, int revents)
{
    struct app *app = signal->data;

    (void)loop;
    (void)revents;
    vmfrost_cancel(app->op);
}

static void
on_done(void *data, const struct vmfrost_result *result)
{
    struct app *app = data;

    app->code = result->code;
    if (result->code != VMFROST_OK)
        fprintf(stderr, "%s\n%s\n", result->text, result->next);
    printf("%s\n", result->json);
    ev_break(app->loop, EVBREAK_ALL);
}

int
main(int argc, char **argv)
{
    struct app app = {.loop = ev_default_loop(0)};
    struct vmfrost_snapshot_options options = VMFROST_SNAPSHOT_OPTIONS_INIT;
    ev_timer tick;
    ev_signal interrupt;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: embed VM|QMP-SOCKET [NAME]\n");
        return VMFROST_USAGE;
    }
    struct vmfrost *vmfrost = vmfrost_new(app.loop, NULL);

    if (!vmfrost) {
        fprintf(stderr, "%s\n", vmfrost_new_error()->text);
        return VMFROST_FAILED;
    }
    ev_timer_init(&tick, on_tick, 0.001, 0.001);
    tick.data = &app;
    ev_timer_start(app.loop, &tick);
    ev_signal_init(&interrupt, on_interrupt, 2);
    interrupt.data = &app;
    ev_signal_start(app.loop, &interrupt);

    options.name = argc > 2 ? argv[2] : NULL;
    app.op = vmfrost_snapshot(vmfrost, argv[1], &options, NULL, on_done, &app);
    ev_run(app.loop, 0);

    fprintf(stderr, "%d ticks in the meantime\n", app.ticks);
    vmfrost_free(vmfrost);
    return app.code;
}
