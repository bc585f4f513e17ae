/* SPDX-License-Identifier: MIT
 *
 * Who a process is, and what a QEMU's command line says.
 */
#include "vm/process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "scratch.h"

/* --- Command lines --- */

/* Arguments as in a shell without quotes: NULs for spaces. Owned by the caller. */
static struct json_object *
parse_in(const char *line, const char *folder)
{
    VF_AUTO_FREE char *cmdline = vf_strdup(line);
    size_t length = strlen(line) + 1;

    for (char *at = cmdline; *at; at++)
        if (*at == ' ')
            *at = '\0';
    return vf_process_parse_qemu(cmdline, length, folder);
}

/* "a b" of a JSON array. Owned by the caller. */
static char *
join(struct json_object *array)
{
    char *text = vf_strdup("");

    for (size_t i = 0; i < vf_json_length(array); i++) {
        char *longer =
            vf_printf("%s%s%s", text, i > 0 ? " " : "", vf_json_text(vf_json_at(array, i)));

        free(text);
        text = longer;
    }
    return text;
}

static const struct {
    const char *line; /* behind "qemu-system-x86_64 -m 1G " */
    const char *name, *qmp, *agent;
    bool no_reboot;
} lines[] = {
    {"-nographic", NULL, "", "", false},
    {"-qmp unix:/run/q.sock,server=on,wait=off", NULL, "/run/q.sock", "", false},
    {"-qmp unix:/run/q.sock,server,nowait", NULL, "/run/q.sock", "", false},
    {"--qmp unix:/run/q.sock,wait=off,server=yes", NULL, "/run/q.sock", "", false},
    {"-qmp-pretty unix:q.sock,server=on", NULL, "/vm/q.sock", "", false},
    {"-qmp unix:./x/q.sock,server=on", NULL, "/vm/./x/q.sock", "", false},
    {"-qmp unix:path=/run/q.sock,server=on", NULL, "/run/q.sock", "", false},
    {"-qmp unix:server=on,path=/run/q.sock", NULL, "/run/q.sock", "", false},
    /* QEMU is the client, or the socket has no path. */
    {"-qmp unix:/run/q.sock", NULL, "", "", false},
    {"-qmp unix:/run/q.sock,server=off", NULL, "", "", false},
    {"-qmp unix:/run/q.sock,server,noserver", NULL, "", "", false},
    {"-qmp unix:q,server=on,abstract=on", NULL, "", "", false},
    {"-qmp unix:fd=7,server=on", NULL, "", "", false},
    {"-qmp tcp:127.0.0.1:4444,server=on", NULL, "", "", false},
    {"-qmp stdio", NULL, "", "", false},
    {"-qmp", NULL, "", "", false},
    {"-qmp ", NULL, "", "", false},
    /* Commas in paths. */
    {"-qmp unix:/run/a,,b,,,server=on", NULL, "/run/a,b,", "", false},
    {"-qmp unix:/run/a,,,,b,server=on", NULL, "/run/a,,b", "", false},
    {"-qmp unix:/run/q,server=on -qmp unix:/run/r,server=on -qmp unix:/run/q,server=on", NULL,
     "/run/q /run/r", "", false},
    /* -mon with -chardev, in any order. */
    {"-chardev socket,id=m,path=/run/m.sock,server=on,wait=off -mon chardev=m,mode=control", NULL,
     "/run/m.sock", "", false},
    {"-mon mode=control,chardev=m -chardev path=/run/m.sock,server=on,id=m,backend=socket", NULL,
     "/run/m.sock", "", false},
    {"-mon m,mode=control,pretty=on -chardev socket,server,path=m.sock,id=m", NULL, "/vm/m.sock",
     "", false},
    {"-chardev socket,id=m,path=/run/m.sock,server=on -qmp chardev:m", NULL, "/run/m.sock", "",
     false},
    {"-chardev socket,id=m,path=/run/m.sock,server=on -mon chardev=m", NULL, "", "", false},
    {"-chardev socket,id=m,path=/run/m.sock,server=on -mon chardev=m,mode=readline", NULL, "", "",
     false},
    {"-chardev socket,id=m,fd=5,server=on -mon chardev=m,mode=control", NULL, "", "", false},
    {"-chardev socket,id=other,path=/run/m.sock,server=on -mon chardev=m,mode=control", NULL, "",
     "", false},
    {"-chardev pipe,id=m,path=/run/m,server=on -mon chardev=m,mode=control", NULL, "", "", false},
    /* The agent. */
    {"-chardev socket,id=a,path=/run/a.sock,server=on,wait=off "
     "-device virtserialport,chardev=a,name=org.qemu.guest_agent.0",
     NULL, "", "/run/a.sock", false},
    {"-device driver=virtserialport,name=org.qemu.guest_agent.0,id=x,chardev=a "
     "-chardev socket,path=a.sock,server=on,id=a",
     NULL, "", "/vm/a.sock", false},
    {"-device name=org.qemu.guest_agent.0,chardev=a,driver=virtserialport "
     "-chardev socket,path=a.sock,server=on,id=a",
     NULL, "", "/vm/a.sock", false},
    {"-device {\"driver\":\"virtserialport\",\"name\":\"org.qemu.guest_agent.0\","
     "\"chardev\":\"a\"} -chardev socket,path=/a.sock,server=on,id=a",
     NULL, "", "/a.sock", false},
    {"-device {\"driver\":\"virtserialport\" -chardev socket,path=/a.sock,server=on,id=a", NULL, "",
     "", false},
    {"-device virtserialport,chardev=a,name=com.redhat.spice.0 "
     "-chardev socket,path=/a.sock,server=on,id=a",
     NULL, "", "", false},
    {"-device virtconsole,chardev=a,name=org.qemu.guest_agent.0 "
     "-chardev socket,path=/a.sock,server=on,id=a",
     NULL, "", "", false},
    /* The name. */
    {"-name web", "web", "", "", false},
    {"-name web,process=qemu", "web", "", "", false},
    {"-name process=qemu,guest=web", "web", "", "", false},
    {"-name guest=a,,b,debug-threads=on", "a,b", "", "", false},
    {"-name debug-threads=on", NULL, "", "", false},
    {"-name one -name guest=two", "two", "", "", false},
    {"-name \033[31mred", "?[31mred", "", "", false},
    /* Resets. */
    {"-no-reboot", NULL, "", "", true},
    {"--no-reboot -nographic", NULL, "", "", true},
    {"-action reboot=shutdown,shutdown=pause", NULL, "", "", true},
    {"-action reboot=reset", NULL, "", "", false},
    {"-action panic=pause", NULL, "", "", false},
};

static void
test_lines(void)
{
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        VF_AUTO_FREE char *line = vf_printf("qemu-system-x86_64 -m 1G %s", lines[i].line);
        VF_AUTO_JSON struct json_object *about = parse_in(line, "/vm");
        VF_AUTO_FREE char *qmp = join(vf_json_array(about, "qmp"));
        VF_AUTO_FREE char *agent = join(vf_json_array(about, "agent"));

        is_str(vf_json_string(about, "name"), lines[i].name, lines[i].line);
        is_str(qmp, lines[i].qmp, "  its QMP sockets");
        is_str(agent, lines[i].agent, "  its agent's");
        ok(vf_json_bool(about, "noReboot", !lines[i].no_reboot) == lines[i].no_reboot,
           "  no reboot: %d", lines[i].no_reboot);
    }
}

static void
test_odd_lines(void)
{
    VF_AUTO_JSON struct json_object *nowhere =
        parse_in("q -qmp unix:rel,server=on -qmp unix:/abs,server=on", NULL);
    VF_AUTO_FREE char *absolute = join(vf_json_array(nowhere, "qmp"));
    VF_AUTO_JSON struct json_object *at_root = parse_in("q -qmp unix:rel,server=on", "/");
    VF_AUTO_FREE char *root = join(vf_json_array(at_root, "qmp"));
    VF_AUTO_JSON struct json_object *empty = vf_process_parse_qemu("", 0, "/vm");
    /* Without its NUL at the end, as a process can make it. */
    static const char torn[] = {'q', 0, '-', 'q', 'm', 'p', 0, 'u', 'n', 'i', 'x', ':', '/', 'a'};
    VF_AUTO_JSON struct json_object *cut = vf_process_parse_qemu(torn, sizeof torn, "/vm");

    is_str(absolute, "/abs", "without QEMU's folder, relative paths are unknown");
    is_str(root, "/rel", "a folder that is /");
    ok(vf_json_array(empty, "qmp") && vf_json_array(empty, "agent"), "nothing at all");
    is_int((long long)vf_json_length(vf_json_array(cut, "qmp")), 0, "a torn command line");
}

/* --- Processes --- */

static pid_t
start_sleeper(void)
{
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    return pid;
}

static void
end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void
test_identity(void)
{
    static const char *const names[] = {"a b", ") R 1 2", "(((", ")))))", "a\nb) S", ""};
    struct vf_process self = vf_process_of(getpid());

    is_int(self.pid, getpid(), "this process");
    ok(self.started > 0, "has a start");
    ok(vf_process_alive(self), "and is alive");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        prctl(PR_SET_NAME, names[i]);
        struct vf_process renamed = vf_process_of(getpid());

        ok(renamed.pid == self.pid && renamed.started == self.started, "odd name %zu", i);
    }
    ok(vf_process_of(0).pid == 0 && vf_process_of(-1).pid == 0, "no process");
    ok(!vf_process_alive((struct vf_process){0, 0}), "no process is not alive");
    ok(vf_process_gone((struct vf_process){0, 0}), "... but gone");
    self.started++;
    ok(!vf_process_alive(self) && vf_process_gone(self), "another process of the same id");
    self.started--;

    struct rlimit before, none;

    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &none);
    bool alive = vf_process_alive(self), gone = vf_process_gone(self);

    setrlimit(RLIMIT_NOFILE, &before);
    ok(!alive && !gone, "one that cannot be looked at is neither alive nor gone");

    pid_t pid = start_sleeper();
    struct vf_process child = vf_process_of(pid);

    ok(vf_process_alive(child), "a child");
    kill(pid, SIGKILL);
    siginfo_t info;

    waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
    ok(!vf_process_alive(child) && vf_process_gone(child), "a zombie is gone");
    waitpid(pid, NULL, 0);
    ok(!vf_process_alive(child) && vf_process_gone(child), "as is what is gone");
    is_int(vf_process_of(pid).pid, 0, "nothing is there");
}

static bool
may_write(pid_t pid, uid_t owner, mode_t mode)
{
    struct vf_rights rights = vf_process_rights(pid);

    return vf_rights_suffice(&rights, owner, mode);
}

static void
test_rights(void)
{
    const uid_t us = geteuid(), nobody = 65534;
    pid_t pid = start_sleeper();

    ok(may_write(pid, us, 0600), "a file of its own");
    ok(!may_write(0, us, 0600), "no process");
    if (us == 0)
        ok(may_write(pid, nobody, 0), "root may write everywhere");
    end(pid);
    ok(!may_write(pid, us, 0600), "it is gone");
    if (us != 0) /* who cannot be another one */
        return;
    int ready[2];
    char byte;

    ok(pipe(ready) == 0, "a pipe");
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (setresuid(nobody, nobody, nobody) == 0 && write(ready[1], "", 1) == 1)
            pause();
        _exit(1);
    }
    ok(read(ready[0], &byte, 1) == 1, "a process of another user");
    ok(may_write(pid, nobody, 0600), "its own");
    ok(!may_write(pid, nobody, 0466), "its own, but not for its owner to write");
    ok(!may_write(pid, us, 0666), "somebody else's");
    end(pid);
    close(ready[0]);
    close(ready[1]);
}

/* A process that looks like a QEMU in `folder`. */
static pid_t
start_qemu(const char *folder, const char *program)
{
    int ready[2];
    char byte;

    if (pipe2(ready, O_CLOEXEC) < 0)
        return -1;
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (chdir(folder) == 0)
            execl("/bin/sh", program, "-c", "kill -STOP $$", "-name", "guest=web", "-qmp",
                  "unix:q.sock,server=on,wait=off", (char *)NULL);
        _exit(1);
    }
    close(ready[1]);
    /* Ends when the new program has begun. */
    if (read(ready[0], &byte, 1) != 0)
        ok(false, "the pipe only ends");
    close(ready[0]);
    return pid;
}

static struct json_object *
find(struct json_object *qemus, pid_t wanted)
{
    int64_t pid;

    for (size_t i = 0; i < vf_json_length(qemus); i++)
        if (vf_json_int(vf_json_at(qemus, i), "pid", &pid) && pid == wanted)
            return vf_json_at(qemus, i);
    return NULL;
}

static void
test_find(void)
{
    char *folder = scratch_new();
    VF_AUTO_FREE char *socket = vf_printf("%s/q.sock", folder);
    pid_t qemu = start_qemu(folder, "/opt/qemu-system-riscv64");
    pid_t kvm = start_qemu(folder, "qemu-kvm"), other = start_qemu(folder, "qemu-img");
    VF_AUTO_JSON struct json_object *qemus = vf_process_find_qemus();
    struct json_object *found = find(qemus, qemu);
    VF_AUTO_FREE char *qmp = join(vf_json_array(found, "qmp"));
    int64_t user = -1;

    ok(found != NULL, "a qemu-system-* is found");
    is_str(vf_json_string(found, "name"), "web", "its name");
    is_str(qmp, socket, "its socket, from its own folder on");
    ok(vf_json_int(found, "user", &user) && user == (int64_t)geteuid(), "its user");
    ok(find(qemus, kvm) != NULL, "qemu-kvm is found");
    ok(!find(qemus, other), "qemu-img is not");
    ok(!find(qemus, getpid()), "nor is this test");
    end(qemu);
    end(kvm);
    end(other);
    scratch_remove(folder);
}

/* A program of this name that has the file open as its input. */
static pid_t
start_user(const char *program, const char *file)
{
    VF_AUTO_FREE char *copy = vf_printf("cp /bin/sleep %s", program);
    int ready[2];
    char byte;

    if (system(copy) != 0 || pipe2(ready, O_CLOEXEC) < 0)
        return -1;
    pid_t pid = fork();

    if (pid == 0) {
        int fd = open(file, O_RDONLY);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(fd, STDIN_FILENO);
        execl(program, "anything", "100", (char *)NULL);
        _exit(1);
    }
    close(ready[1]);
    ok(read(ready[0], &byte, 1) == 0, "%s runs", program);
    close(ready[0]);
    return pid;
}

static void
test_users(void)
{
    char *folder = scratch_new();
    VF_AUTO_FREE char *image = vf_printf("%s/image", folder);
    VF_AUTO_FREE char *other_image = vf_printf("%s/other", folder);
    VF_AUTO_FREE char *program = vf_printf("%s/qemu-nbd", folder);
    VF_AUTO_FREE char *other_program = vf_printf("%s/cat", folder);

    put_file(image, "one");
    put_file(other_image, "two");
    pid_t users[] = {start_user(program, image), 0};
    pid_t reader = start_user(other_program, image);
    VF_AUTO_JSON struct json_object *found = vf_process_find_users(vf_inode_of(image), NULL, 0);
    VF_AUTO_JSON struct json_object *known = vf_process_find_users(vf_inode_of(image), users, 2);
    VF_AUTO_JSON struct json_object *none =
        vf_process_find_users(vf_inode_of(other_image), NULL, 0);

    is_int((long long)vf_json_length(found), 1, "one program of QEMU's has it open");
    is_str(vf_json_string(find(found, users[0]), "name"), "qemu-nbd", "it is named");
    is_int((long long)vf_json_length(known), 0, "unless it is known");
    is_int((long long)vf_json_length(none), 0, "no other image is used");
    end(users[0]);
    end(reader);
    scratch_remove(folder);
}

int
main(void)
{
    test_users();
    test_lines();
    test_odd_lines();
    test_identity();
    test_rights();
    test_find();
    return done_testing();
}
