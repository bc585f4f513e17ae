/* SPDX-License-Identifier: MIT
 *
 * Names of images: found through a process that has them open, made, and changed. The "QEMU" here
 * is a child that opens what it is told to and waits.
 */
#include "vm/names.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include "scratch.h"

#define ID "0123456789abcdef"

static char *folder;
static char logged[4096];

static void
keep_line(void *data, enum vmfrost_log_level level, const char *line)
{
    size_t length = strlen(logged);

    (void)data;
    ok(level == VMFROST_LOG_DEBUG, "logged for debugging");
    snprintf(logged + length, sizeof logged - length, "%s\n", line);
}

static const struct vf_log quiet = {.fn = NULL}, loud = {.fn = keep_line};

/* A path in the test's folder. Owned by the caller. */
static char *
at(const char *name)
{
    return *name ? vf_printf("%s/%s", folder, name) : vf_strdup(folder);
}

static struct vf_inode
make(const char *name)
{
    VF_AUTO_FREE char *path = at(name);

    if (!put_file(path, name))
        ok(false, "cannot make %s: %s", path, strerror(errno));
    return vf_inode_of(path);
}

static bool
leads_to(const char *name, struct vf_inode inode)
{
    VF_AUTO_FREE char *path = at(name);

    return vf_inode_equal(vf_inode_of(path), inode);
}

static bool
is_in_folder(const char *name)
{
    VF_AUTO_FREE char *path = at(name);

    return is_there(path);
}

static void
link_to(const char *from, const char *to)
{
    VF_AUTO_FREE char *source = at(from), *target = at(to);

    if (link(source, target) < 0)
        ok(false, "cannot link %s: %s", target, strerror(errno));
}

static void
move(const char *from, const char *to)
{
    VF_AUTO_FREE char *source = at(from), *target = at(to);

    if (rename(source, target) < 0)
        ok(false, "cannot rename %s: %s", target, strerror(errno));
}

static void
empty_folder(void)
{
    scratch_remove(folder);
    folder = scratch_new();
}

/* --- The process --- */

/* How the child differs from its parent. */
enum view { SAME, OWN_ROOT, OWN_MOUNTS };

/* A child in `folder` that has `file` (as it sees it) open. */
static pid_t
start(enum view view, const char *file, int flags)
{
    int ready[2];
    char byte;

    if (pipe2(ready, O_CLOEXEC) < 0)
        return -1;
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        bool good = chdir(folder) == 0;

        if (view == OWN_ROOT)
            good = good && chroot(folder) == 0;
        if (view == OWN_MOUNTS)
            good = good && unshare(CLONE_NEWNS) == 0;
        /* Without O_CLOEXEC, as QEMU's would be. */
        good = good && open(file, flags) >= 0;
        good = good && write(ready[1], "", 1) == 1;
        while (good)
            pause();
        _exit(1);
    }
    close(ready[1]);
    bool good = read(ready[0], &byte, 1) == 1;

    close(ready[0]);
    if (good)
        return pid;
    waitpid(pid, NULL, 0);
    return -1;
}

static void
end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* --- Places --- */

static struct vf_place place;
static struct vmfrost_error error;

static bool
find(pid_t pid, const char *file, const char *format, const char *overlays)
{
    VF_CLEANUP(vf_view_release) struct vf_view view;

    vf_view_read(&view, pid);
    vf_place_release(&place);
    memset(&error, 0, sizeof error);
    bool good = vf_place_find(&view, file, format, overlays, &place, &error);

    ok(good == (error.code == VMFROST_OK), "  an error if and only if it fails");
    if (!good)
        ok(!place.why && !place.folder, "  nothing is left of it but its path");
    return good;
}

static void
is_place(enum vf_naming naming, const char *name, struct vf_inode inode, const char *what)
{
    VF_AUTO_FREE char *path = at(name);

    ok(place.naming == naming, "%s: naming", what);
    is_str(place.path, path, what);
    is_str(place.folder, folder, what);
    ok(inode.number ? vf_inode_equal(place.inode, inode) : place.inode.number == 0, "%s: inode",
       what);
    ok((place.why != NULL) == (naming == VF_NAMING_NEW_FILE), "%s: a reason", what);
}

static void
test_flip_places(void)
{
    struct vf_inode web = make("web.qcow2");
    VF_AUTO_FREE char *path = at("web.qcow2"), *hidden = at(".web.qcow2." ID);
    VF_AUTO_FREE char *dir = at("dir"), *linked = at("dir/link.qcow2"), *dirlink = at("dirlink");
    pid_t pid = start(SAME, "web.qcow2", O_RDWR);

    ok(find(pid, path, "qcow2", NULL), "an absolute path");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "absolute");
    ok(place.opened_by_name, "its name leads to it");
    ok(find(pid, "web.qcow2", "qcow2", NULL), "a relative path");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "relative");
    ok(find(pid, "./web.qcow2", "qcow2", "/nowhere"), "a relative path with a dot");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "relative with a dot, overlay folder not needed");

    ok(mkdir(dir, 0700) == 0 && symlink("../web.qcow2", linked) == 0, "a symbolic link");
    ok(find(pid, "dir/link.qcow2", "qcow2", NULL), "through a symbolic link");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "the names lie beside the real file");
    ok(symlink(folder, dirlink) == 0 && find(pid, "dirlink/web.qcow2", "qcow2", NULL),
       "through a symbolic link to the folder");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "its real folder");

    /* The cut: QEMU knows the overlay by its hidden name, the visible one is another link. */
    link_to("web.qcow2", ".web.qcow2." ID);
    ok(find(pid, hidden, "qcow2", NULL), "by its hidden name");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "hidden");
    ok(place.opened_by_name, "the hidden name leads to it");
    ok(find(pid, "dirlink/.web.qcow2." ID, "qcow2", NULL), "hidden, through a link");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "hidden, through a link");
    unlink(hidden);
    ok(find(pid, hidden, "qcow2", NULL), "the hidden link is gone");
    is_place(VF_NAMING_FLIP, "web.qcow2", web, "the visible one tells");
    ok(!place.opened_by_name, "but QEMU cannot open it again");
    end(pid);
    empty_folder();
}

static void
test_diverged(void)
{
    VF_AUTO_FREE char *path = at("web.qcow2"), *hidden = at(".web.qcow2." ID);

    make("web.qcow2");
    link_to("web.qcow2", ".web.qcow2." ID);
    pid_t pid = start(SAME, ".web.qcow2." ID, O_RDWR);

    make("other.qcow2");
    move("other.qcow2", "web.qcow2");
    ok(!find(pid, hidden, "qcow2", NULL), "the visible name leads to another file");
    has_str(error.text, "web.qcow2 is not the file that QEMU has open", "says so");
    has_str(error.next, "replaced", "and why");
    ok(!find(pid, path, "qcow2", NULL), "so does the name that QEMU opened");
    has_str(error.text, "is not the file that QEMU has open", "says so");
    unlink(hidden);
    ok(!find(pid, hidden, "qcow2", NULL), "also without a hidden link");
    has_str(error.text, "web.qcow2 is not the file that QEMU has open", "says so");
    unlink(path);
    ok(!find(pid, hidden, "qcow2", NULL), "no visible name at all");
    has_str(error.text, "web.qcow2 does not exist any more", "says so");
    ok(!find(pid, path, "qcow2", NULL), "no name at all");
    has_str(error.text, "does not exist any more, though QEMU has it open", "says so");
    end(pid);

    /* Open for reading only: that is another disk's backing file, not this disk. */
    make("web.qcow2");
    pid = start(SAME, "web.qcow2", O_RDONLY);
    ok(!find(pid, hidden, "qcow2", NULL), "the visible name is only read");
    end(pid);
    empty_folder();
}

/* Names that are no hidden links, though they look a little like some. */
static void
test_hidden_names(void)
{
    static const char *const names[] = {".web.qcow2.0123456789abcde",
                                        ".web.qcow2.0123456789abcdeg",
                                        ".web.qcow2.0123456789ABCDEF",
                                        "web.qcow2." ID,
                                        ".." ID,
                                        "." ID,
                                        ".web.qcow2-0123456789abcdef"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct vf_inode inode = make(names[i]);
        pid_t pid = start(SAME, names[i], O_RDWR);

        ok(find(pid, names[i], "qcow2", NULL), "%s", names[i]);
        is_place(VF_NAMING_FLIP, names[i], inode, names[i]);
        end(pid);
    }
    empty_folder();
}

static void
test_new_file_places(void)
{
    struct vf_inode raw = make("disk.raw");
    VF_AUTO_FREE char *overlays = at("overlays");
    pid_t pid = start(SAME, "disk.raw", O_RDWR);

    ok(find(pid, "disk.raw", "raw", NULL), "a raw image");
    is_place(VF_NAMING_NEW_FILE, "disk.raw", raw, "raw");
    has_str(place.why, "as raw", "why");
    ok(find(pid, "disk.raw", "file", NULL), "a protocol node");
    is_place(VF_NAMING_NEW_FILE, "disk.raw", raw, "file");
    ok(!find(pid, "disk.raw", "raw", overlays), "no such overlay folder");
    has_str(error.next, "overlayFolder", "says what to do");
    ok(mkdir(overlays, 0700) == 0 && find(pid, "disk.raw", "raw", overlays), "an overlay folder");
    is_str(place.folder, overlays, "it is taken");

    static const char description[] = "json:{\"driver\":\"raw\",\"offset\":512,\"file\":"
                                      "{\"driver\":\"file\",\"filename\":\"/a/b\"}}";
    static const char *const others[] = {"/dev/fdset/3", "nbd://localhost:10809/web",
                                         "nbd+unix:///web?socket=/run/x", "rbd:pool/web",
                                         description};

    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        ok(!find(pid, others[i], "raw", NULL), "%s has no folder", others[i]);
        ok(place.path, "but a path");
        has_str(error.next, "overlayFolder", "says what to do");
        ok(find(pid, others[i], "raw", overlays), "with one");
        ok(place.naming == VF_NAMING_NEW_FILE, "a new file");
        ok(!place.inode.number && !place.opened_by_name, "no file of this host");
        is_str(place.path, others[i], "its own name");
    }
    ok(find(pid,
            "json:{\"driver\":\"raw\",\"offset\":512,\"file\":{\"driver\":\"file\","
            "\"filename\":\"disk.raw\"}}",
            "raw", overlays),
       "a relative name inside of a description");
    VF_AUTO_FREE char *absolute = vf_printf("\"filename\":\"%s/disk.raw\"", folder);

    has_str(place.path, absolute, "is made absolute: a header is read from another folder");
    ok(!find(pid, "json:{", "raw", overlays), "a torn description");
    end(pid);

    /* A colon makes no protocol of a file that is there. */
    struct vf_inode odd = make("nbd:web.qcow2");

    pid = start(SAME, "nbd:web.qcow2", O_RDWR);
    ok(find(pid, "nbd:web.qcow2", "qcow2", NULL), "a file with a colon in its name");
    is_place(VF_NAMING_FLIP, "nbd:web.qcow2", odd, "colon");
    end(pid);
    empty_folder();
}

static void
test_unseen(void)
{
    VF_AUTO_FREE char *path = at("web.qcow2");
    const struct vf_inode nothing = {0, 0};

    make("web.qcow2");
    ok(find(0, path, "qcow2", NULL), "no process: an absolute path");
    is_place(VF_NAMING_NEW_FILE, "web.qcow2", nothing, "not compared");
    ok(!find(0, "web.qcow2", "qcow2", folder), "a relative path");
    has_str(error.text, "relative to QEMU's folder", "is relative to what?");
    ok(!find(0, "nbd:localhost:1", "raw", NULL), "a protocol without a folder");
    ok(find(0, "nbd:localhost:1", "raw", folder), "a protocol with one");
    is_str(place.path, "nbd:localhost:1", "keeps its name");
    ok(!find(0, "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"rel.raw\"}}",
             "raw", folder),
       "a description with a relative path");

    /* A process that has never been. */
    ok(find(INT_MAX, path, "qcow2", NULL), "a process that cannot be looked at");
    is_place(VF_NAMING_NEW_FILE, "web.qcow2", nothing, "cannot be looked at");
    has_str(place.why, "cannot be seen", "why");
    ok(!find(INT_MAX, "web.qcow2", "qcow2", folder), "a relative path of it");
    empty_folder();
}

static void
test_views(void)
{
    VF_AUTO_FREE char *path = at("web.qcow2");
    struct vf_inode web = make("web.qcow2");
    pid_t pid = start(OWN_MOUNTS, "web.qcow2", O_RDWR);

    if (pid < 0) {
        diag("other views need more rights");
        empty_folder();
        return;
    }
    ok(find(pid, path, "qcow2", NULL), "another mount namespace");
    is_place(VF_NAMING_NEW_FILE, "web.qcow2", web, "another mount namespace, the same folder");
    has_str(place.why, "mount namespace", "why");
    end(pid);

    pid = start(OWN_ROOT, "/web.qcow2", O_RDWR);
    ok(!find(pid, "/web.qcow2", "qcow2", NULL), "another root: no folder that both see");
    VF_AUTO_FREE char *inner = vf_strdup(folder);

    ok(!find(pid, "/web.qcow2", "qcow2", inner), "an overlay folder that QEMU does not see");
    ok(find(pid, "/web.qcow2", "qcow2", "/") == false, "two folders of one name are not the same");
    end(pid);
    empty_folder();
}

/* On a file system that is not known by its type, in a mount namespace of its own. */
static int
find_on_ramfs(void)
{
    VF_AUTO_FREE char *path = at("web.qcow2");
    VF_CLEANUP(vf_view_release) struct vf_view view = {0};
    int names = 0;

    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("none", folder, "ramfs", 0, NULL) < 0)
        return 2;
    if (!put_file(path, "web") || open(path, O_RDWR | O_CLOEXEC) < 0)
        return 1;
    vf_view_read(&view, getpid());
    if (!vf_place_find(&view, path, "qcow2", NULL, &place, &error))
        return 1;
    bool good = place.naming == VF_NAMING_FLIP && strcmp(place.path, path) == 0;
    struct dirent *entry;
    DIR *list = opendir(folder);

    while (list && (entry = readdir(list)))
        names += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    if (list)
        closedir(list);
    vf_place_release(&place);
    return good && names == 1 ? 0 : 1;
}

static void
test_trial(void)
{
    int status = -1;
    if (getenv("VALGRIND")) {
        diag("hard links are tried where they may not work: not under valgrind, whose files are on "
             "what is mounted over");
        return;
    }
    pid_t pid = fork();

    if (pid == 0)
        _exit(find_on_ramfs());
    waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2)
        diag("mounting needs more rights");
    else
        ok(status == 0, "hard links are tried where they may not work, and leave nothing behind");
}

static void
test_devices(void)
{
    VF_AUTO_FREE char *path = at("vda");

    if (mknod(path, S_IFBLK | 0600, makedev(7, 250)) < 0) {
        diag("making block devices needs more rights");
        return;
    }
    ok(!find(getpid(), path, "raw", NULL), "a block device needs a folder");
    has_str(error.next, "overlayFolder", "says so");
    ok(find(getpid(), path, "qcow2", folder), "a block device with one");
    is_str(place.path, path, "keeps its name");
    ok(place.naming == VF_NAMING_NEW_FILE && !place.inode.number, "is no file");
    empty_folder();
}

static void
test_opened(void)
{
    struct vf_inode web = make("web.qcow2"), other = make("other");
    struct vf_opened opened;
    pid_t pid = start(SAME, "web.qcow2", O_RDWR);

    ok(vf_process_opened(pid, web, &opened) && opened.read_write && !opened.read_only,
       "open for writing");
    ok(vf_process_opened(pid, other, &opened) && !opened.read_write && !opened.read_only,
       "not open");
    ok(vf_process_opened(pid, (struct vf_inode){0, 0}, &opened) && !opened.read_write,
       "an unknown inode is not open");
    end(pid);
    pid = start(SAME, "web.qcow2", O_RDONLY);
    ok(vf_process_opened(pid, web, &opened) && !opened.read_write && opened.read_only,
       "open for reading");
    end(pid);
    pid = start(SAME, "web.qcow2", O_PATH);
    ok(vf_process_opened(pid, web, &opened) && !opened.read_write && !opened.read_only,
       "O_PATH opens nothing");
    end(pid);
    ok(!vf_process_opened(INT_MAX, web, &opened), "no such process");
    empty_folder();
}

static void
test_locked(void)
{
    struct vf_inode web = make("web.qcow2");
    struct vf_opened opened;
    VF_AUTO_FREE char *path = at("web.qcow2");
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 1};

    ok(vf_process_opened(getpid(), web, &opened) && opened.read_write && !opened.may_write,
       "no locks: nothing says that it may write");
    is_int(fcntl(fd, F_OFD_SETLK, &lock), 0, "a reader's lock");
    ok(vf_process_opened(getpid(), web, &opened) && opened.read_write && !opened.may_write,
       "... is not enough");
    lock.l_len = 2;
    fcntl(fd, F_OFD_SETLK, &lock);
    ok(vf_process_opened(getpid(), web, &opened) && opened.read_write && opened.may_write,
       "a writer's lock, in a range");
    lock = (struct flock){.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};
    fcntl(fd, F_OFD_SETLK, &lock);
    ok(vf_process_opened(getpid(), web, &opened) && opened.read_write && !opened.may_write,
       "... given up");
    lock = (struct flock){.l_type = F_RDLCK, .l_whence = SEEK_SET};
    fcntl(fd, F_OFD_SETLK, &lock);
    ok(vf_process_opened(getpid(), web, &opened) && opened.may_write, "a lock on all of it");
    close(fd);
    empty_folder();
}

/* --- Names --- */

static void
test_sealed(void)
{
    static const struct {
        const char *top, *sealed;
    } names[] = {
        {"web.qcow2", "web@s.qcow2"},
        {"/a/web.qcow2", "/a/web@s.qcow2"},
        {"web", "web@s"},
        {"/a.b/web", "/a.b/web@s"},
        {".web", ".web@s"},
        {"/a/.web", "/a/.web@s"},
        {"web.tar.qcow2", "web.tar@s.qcow2"},
        {"web.", "web@s."},
    };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        VF_AUTO_FREE char *sealed = vf_sealed_name(names[i].top, "s");

        is_str(sealed, names[i].sealed, names[i].top);
    }
}

static void
check_names(enum vf_naming naming, const char *path, const char *in, const struct vf_names *wanted)
{
    const struct vf_place where = {.naming = naming, .path = (char *)path, .folder = (char *)in};
    struct vf_names names;

    vf_names_make(&where, "before", ID, &names);
    is_str(names.top, wanted->top, path);
    is_str(names.sealed, wanted->sealed, path);
    is_str(names.overlay, wanted->overlay, path);
    is_str(names.next, wanted->next, path);
    is_str(names.backing, wanted->backing, path);
    vf_names_release(&names);
    ok(!names.overlay, "released");
}

static void
test_names(void)
{
    check_names(VF_NAMING_FLIP, "/vm/web.qcow2", "/vm",
                &(struct vf_names){"/vm/web.qcow2", "/vm/web@before.qcow2", "/vm/.web.qcow2." ID,
                                   "/vm/.web.qcow2." ID ".next", "web@before.qcow2"});
    check_names(VF_NAMING_FLIP, "/web", "/",
                &(struct vf_names){"/web", "/web@before", "/.web." ID, "/.web." ID ".next",
                                   "web@before"});
    check_names(VF_NAMING_FLIP, "/vm/a:b.qcow2", "/vm",
                &(struct vf_names){"/vm/a:b.qcow2", "/vm/a:b@before.qcow2", "/vm/.a:b.qcow2." ID,
                                   "/vm/.a:b.qcow2." ID ".next", "./a:b@before.qcow2"});
    check_names(VF_NAMING_NEW_FILE, "/vm/disk.raw", "/vm",
                &(struct vf_names){NULL, "/vm/disk.raw", "/vm/disk+before.qcow2", NULL,
                                   "disk.raw"});
    check_names(VF_NAMING_NEW_FILE, "/disk", "/",
                &(struct vf_names){NULL, "/disk", "/disk+before.qcow2", NULL, "disk"});
    check_names(VF_NAMING_NEW_FILE, "/vm/di sk%.raw", "/vm",
                &(struct vf_names){NULL, "/vm/di sk%.raw", "/vm/di_sk_+before.qcow2", NULL,
                                   "di sk%.raw"});
}

/* Elsewhere, two disks of one name must not meet in one file. */
static void
test_names_elsewhere(void)
{
    static const struct {
        const char *path, *stem;
    } disks[] = {
        {"/a/disk.raw", "/over/disk-"},     {"/b/disk.raw", "/over/disk-"},
        {"/dev/vg/web", "/over/web-"},      {"rbd:pool/web", "/over/web-"},
        {"nbd:host:10809", "/over/10809-"}, {"nbd:host:1:exportname=../x", "/over/x-"},
        {"nbd://host/", "/over/disk-"},     {"json:{\"driver\":\"x\"}", "/over/disk-"},
        {"/dev/fdset/3", "/over/3-"},       {"/a/.hidden", "/over/disk-"},
    };
    struct vf_names names[sizeof disks / sizeof *disks];
    size_t count = sizeof disks / sizeof *disks;

    for (size_t i = 0; i < count; i++) {
        const struct vf_place where = {.naming = VF_NAMING_NEW_FILE,
                                       .path = (char *)disks[i].path,
                                       .folder = (char *)"/over"};

        vf_names_make(&where, "s", ID, &names[i]);
        is_str(names[i].backing, disks[i].path, "the base has its whole name");
        ok(strncmp(names[i].overlay, disks[i].stem, strlen(disks[i].stem)) == 0, "%s is for %s",
           names[i].overlay, disks[i].path);
        ok(!strchr(names[i].overlay + strlen("/over/"), '/'), "it lies in the folder");
        for (size_t j = 0; j < i; j++)
            if (strcmp(names[i].overlay, names[j].overlay) == 0)
                ok(false, "%s twice", names[i].overlay);
    }
    for (size_t i = 0; i < count; i++)
        vf_names_release(&names[i]);
}

static void
test_names_free(void)
{
    VF_AUTO_FREE char *path = at("web.qcow2"), *raw = at("disk.raw");
    struct vf_place flip = {.naming = VF_NAMING_FLIP, .path = path, .folder = folder};
    struct vf_place new_file = {.naming = VF_NAMING_NEW_FILE, .path = raw, .folder = folder};
    static const char *const taken[] = {"web@before.qcow2", ".web.qcow2." ID,
                                        ".web.qcow2." ID ".next"};
    struct vf_names names;

    make("web.qcow2");
    make("disk.raw");
    vf_names_make(&flip, "before", ID, &names);
    memset(&error, 0, sizeof error);
    ok(vf_names_free(&names, &error), "all names are free");
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        VF_AUTO_FREE char *name = at(taken[i]);

        ok(symlink("nowhere", name) == 0, "even a link to nothing");
        memset(&error, 0, sizeof error);
        ok(!vf_names_free(&names, &error), "%s is taken", taken[i]);
        has_str(error.text, name, "says which");
        unlink(name);
    }
    vf_names_release(&names);

    vf_names_make(&new_file, "before", ID, &names);
    memset(&error, 0, sizeof error);
    ok(vf_names_free(&names, &error), "a base keeps its name");
    make("disk+before.qcow2");
    ok(!vf_names_free(&names, &error), "the new file is taken");
    vf_names_release(&names);

    /* 255 bytes are what a name can have. */
    char name[256] = {0};

    memset(name, 'x', 240);
    VF_AUTO_FREE char *longest = at(name);

    flip.path = longest;
    vf_names_make(&flip, "before", ID, &names);
    memset(&error, 0, sizeof error);
    ok(!vf_names_free(&names, &error), "a hidden name that is too long");
    has_str(error.text, "too long", "says so");
    has_str(error.next, "shorter", "and what to do");
    vf_names_release(&names);
    name[200] = '\0';
    VF_AUTO_FREE char *shorter = at(name);

    flip.path = shorter;
    vf_names_make(&flip, "before", ID, &names);
    memset(&error, 0, sizeof error);
    ok(vf_names_free(&names, &error), "one that is not");
    vf_names_release(&names);
    empty_folder();
}

static void
test_long_backing(void)
{
    char name[1200] = "nbd:";
    struct vf_place far = {.naming = VF_NAMING_NEW_FILE, .path = name, .folder = folder};
    struct vf_names names;

    memset(name + 4, 'x', 100);
    name[104] = '/';
    memset(name + 105, '/', 1000);
    vf_names_make(&far, "before", ID, &names);
    memset(&error, 0, sizeof error);
    ok(!vf_names_free(&names, &error), "a backing name that no header can hold");
    has_str(error.text, "too long for the header", "says so");
    vf_names_release(&names);
}

/* --- Changes --- */

static const struct vf_inode unknown = {0, 0};

/* One attempt, with a fresh error. */
static bool
flip(const char *from, struct vf_inode inode, const char *to, struct vf_inode replaced)
{
    VF_AUTO_FREE char *source = at(from), *target = at(to);

    memset(&error, 0, sizeof error);
    bool good = vf_flip(source, inode, target, replaced, &quiet, &error);

    ok(good == (error.code == VMFROST_OK), "  an error if and only if it fails");
    return good;
}

static bool
unlink_one(const char *name, struct vf_inode inode)
{
    VF_AUTO_FREE char *path = at(name);

    memset(&error, 0, sizeof error);
    return vf_unlink(path, inode, &quiet, &error);
}

static bool
link_one(const char *from, const char *to, struct vf_inode inode)
{
    VF_AUTO_FREE char *source = at(from), *target = at(to);

    memset(&error, 0, sizeof error);
    return vf_link(source, target, inode, &quiet, &error);
}

static void
test_inodes(void)
{
    VF_AUTO_FREE char *path = at("a"), *symbolic = at("symbolic"), *gone = at("gone");
    struct vf_inode a = make("a"), b = make("b");

    ok(vf_inode_known(a) && vf_inode_equal(a, a) && !vf_inode_equal(a, b), "inodes");
    ok(!vf_inode_equal(unknown, unknown), "unknown equals nothing, not even unknown");
    ok(!vf_inode_known(vf_inode_of(gone)), "no file, no inode");
    ok(symlink(path, symbolic) == 0 && !vf_inode_equal(vf_inode_of(symbolic), a),
       "a symbolic link is itself");
    empty_folder();
}

static void
test_link(void)
{
    VF_AUTO_FREE char *a_path = at("a"), *symbolic = at("symbolic");
    struct vf_inode a = make("a"), b = make("b");

    ok(link_one("a", "c", a) && leads_to("c", a) && leads_to("a", a), "a second name");
    ok(!link_one("a", "b", a) && leads_to("b", b), "a name that is taken");
    has_str(error.text, "File exists", "says so");
    ok(!link_one("a", "d", b) && !is_in_folder("d"), "not the file that it should be");
    has_str(error.text, "is not the file that it should be", "says so");
    ok(!link_one("gone", "d", a) && !is_in_folder("d"), "no file");
    ok(!link_one("a", "d", unknown) && !is_in_folder("d"), "an unknown inode");
    ok(symlink(a_path, symbolic) == 0 && !link_one("symbolic", "d", a) && !is_in_folder("d"),
       "a symbolic link is not followed");
    ok(!link_one("a", "nowhere/d", a), "no folder");
    empty_folder();
}

static void
test_flip(void)
{
    VF_AUTO_FREE char *a_path = at("a"), *symbolic = at("symbolic");
    struct vf_inode base = make("web"), over = make("next");

    /* Keeps the base: a new file could have its number otherwise. */
    link_to("web", "sealed");
    link_to("next", "hidden");
    ok(flip("next", over, "web", base), "the overlay's second link over the base's");
    ok(leads_to("web", over) && !is_in_folder("next") && leads_to("hidden", over), "flipped");
    ok(flip("next", over, "web", base), "once more is no harm");
    ok(leads_to("web", over), "still flipped");

    /* rename(2) between two links of one file does nothing, and says that all is well. */
    link_to("web", "next");
    ok(flip("next", over, "web", base), "two links of one file");
    ok(leads_to("web", over) && !is_in_folder("next"), "one is gone");

    struct vf_inode other = make("other"), third = make("third");

    ok(!flip("gone", base, "web", over), "nothing to rename");
    has_str(error.text, "is not there", "says so");
    ok(!flip("other", base, "web", over) && leads_to("other", other) && leads_to("web", over),
       "not the file to rename");
    has_str(error.text, "is not the file that it should be", "says so");
    ok(!flip("other", other, "third", over) && leads_to("other", other) && leads_to("third", third),
       "not the file to replace");
    ok(!flip("other", other, "gone", over) && leads_to("other", other) && !is_in_folder("gone"),
       "nothing to replace");
    ok(!flip("other", other, "third", unknown) && leads_to("third", third),
       "there should be nothing to replace");
    has_str(error.text, "nothing should be", "says so");
    ok(!flip("other", unknown, "gone", unknown) && leads_to("other", other), "unknown file");
    ok(flip("other", other, "gone", unknown) && leads_to("gone", other) && !is_in_folder("other"),
       "to a name that is free");

    /* Another file took the name of the second link meanwhile. */
    make("next");
    ok(!flip("next", over, "web", base) && is_in_folder("next") && leads_to("web", over),
       "a stranger under the second link's name stays");

    struct vf_inode a = make("a");

    ok(symlink(a_path, symbolic) == 0 && !flip("symbolic", a, "web", over) &&
           !flip("third", third, "symbolic", a) && leads_to("a", a) && leads_to("third", third),
       "symbolic links are not followed");
    ok(!flip("a", a, "nowhere/a", unknown) && leads_to("a", a), "no folder");
    empty_folder();
}

static void
test_unlink(void)
{
    VF_AUTO_FREE char *a_path = at("a"), *symbolic = at("symbolic");
    struct vf_inode a = make("a"), b = make("b");

    ok(!unlink_one("a", b) && leads_to("a", a), "another file stays");
    has_str(error.text, "is not the file that it should be", "says so");
    ok(!unlink_one("a", unknown) && leads_to("a", a), "of an unknown inode nothing is removed");
    ok(symlink(a_path, symbolic) == 0 && !unlink_one("symbolic", a) && is_in_folder("symbolic") &&
           is_in_folder("a"),
       "symbolic links are not followed");
    ok(unlink_one("a", a) && !is_in_folder("a"), "removed");
    ok(unlink_one("a", a), "gone already");
    ok(unlink_one("nothing", unknown), "never was there");
    ok(!unlink_one("b/c", b), "cannot be looked at");
    empty_folder();
}

static void
test_log(void)
{
    VF_AUTO_FREE char *a = at("a"), *b = at("b"), *c = at("c");
    struct vf_inode inode = make("a");
    VF_AUTO_FREE char *wanted = vf_printf("file link %s -> %s\nfile rename %s -> %s\n"
                                          "file unlink %s\nfile unlink %s\n",
                                          a, b, b, c, a, c);

    memset(&error, 0, sizeof error);
    ok(vf_link(a, b, inode, &loud, &error) && vf_flip(b, inode, c, unknown, &loud, &error) &&
           vf_flip(a, inode, c, inode, &loud, &error) && vf_unlink(c, inode, &loud, &error),
       "each kind of change");
    is_str(logged, wanted, "is logged");
    empty_folder();
}

/* Somebody puts another folder in the place of the images' again and again. */
static pid_t
swap_forever(const char *one, const char *other)
{
    pid_t parent = getpid(), child = fork();

    if (child != 0)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == parent)
        syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
    _exit(0);
}

static struct vf_inode
inode_in(int handle, const char *name)
{
    struct stat about;

    return fstatat(handle, name, &about, AT_SYMLINK_NOFOLLOW) == 0
               ? (struct vf_inode){about.st_dev, about.st_ino}
               : (struct vf_inode){0, 0};
}

/* Nothing is changed in the other folder, whenever it comes. */
static void
test_swapped(void)
{
    VF_AUTO_FREE char *images = at("images"), *other = at("other");
    VF_AUTO_FREE char *top = at("images/top"), *next = at("images/next"), *new = at("images/new");
    VF_AUTO_FREE char *kept = at("images/kept");
    int damage = 0, done = 0;
    bool ready = true;

    ok(mkdir(images, 0755) == 0 && mkdir(other, 0755) == 0, "two folders");
    struct vf_inode base = make("images/base"), overlay = make("images/overlay");
    struct vf_inode theirs = make("other/top"), their_next = make("other/next");
    VF_AUTO_FD int mine = open(images, O_PATH | O_DIRECTORY | O_CLOEXEC);
    VF_AUTO_FD int foreign = open(other, O_PATH | O_DIRECTORY | O_CLOEXEC);
    pid_t child = swap_forever(images, other);

    ready = linkat(mine, "base", mine, "kept", 0) == 0;
    for (int i = 0; ready && damage == 0 && i < 5000; i++) {
        unlinkat(mine, "top", 0);
        unlinkat(mine, "next", 0);
        unlinkat(mine, "new", 0);
        ready = linkat(mine, "base", mine, "top", 0) == 0 &&
                linkat(mine, "overlay", mine, "next", 0) == 0;
        done += vf_link(kept, new, base, &quiet, &error);
        if (i % 2)
            done += vf_flip(next, overlay, top, base, &quiet, &error);
        else
            done += vf_exchange(next, overlay, top, base, &quiet, &error);
        done += vf_unlink(next, inode_in(mine, "next"), &quiet, &error);
        damage += !vf_inode_equal(inode_in(foreign, "top"), theirs) ||
                  !vf_inode_equal(inode_in(foreign, "next"), their_next) ||
                  vf_inode_known(inode_in(foreign, "new"));
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    ok(ready && done > 0, "some of it was done: %d", done);
    ok(damage == 0, "whatever lies in the folder's place meanwhile, it is left alone");
}

int
main(void)
{
    folder = scratch_new();
    test_flip_places();
    test_diverged();
    test_hidden_names();
    test_new_file_places();
    test_unseen();
    test_views();
    test_trial();
    test_devices();
    test_opened();
    test_locked();
    vf_place_release(&place);
    test_sealed();
    test_names();
    test_names_elsewhere();
    test_names_free();
    test_long_backing();
    test_inodes();
    test_link();
    test_flip();
    test_unlink();
    test_log();
    test_swapped();
    scratch_remove(folder);
    return done_testing();
}
