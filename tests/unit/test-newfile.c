/* SPDX-License-Identifier: MIT
 *
 * Files that get their names when they are whole, and what is left of those that never were.
 */
#include "util/newfile.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include "scratch.h"
#include "util/text.h"

static char *folder, *path;
static struct vmfrost_error error;

static bool
create(struct vf_newfile *file)
{
    *file = (struct vf_newfile)VF_NEWFILE_INIT;
    error = (struct vmfrost_error){.code = VMFROST_OK};
    return vf_newfile_create(file, path, &error);
}

/* How many names are in the folder. */
static int
count(void)
{
    DIR *entries = opendir(folder);
    int found = 0;

    for (struct dirent *entry; (entry = readdir(entries));)
        found += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(entries);
    return found;
}

static char *
beside(const char *name)
{
    return vf_printf("%s/%s", folder, name);
}

static void
test_life(void)
{
    struct vf_newfile file;
    struct stat about;

    umask(026);
    ok(create(&file) && file.fd >= 0 && vf_starts_with(file.part, folder), "created");
    ok(lstat(path, &about) < 0 && count() == 1, "nothing has its name yet");
    ok(write(file.fd, "whole", 5) == 5 && vf_newfile_publish(&file, &error), "published");
    ok(lstat(path, &about) == 0 && about.st_size == 5 && count() == 1, "there it is, alone");
    is_int(about.st_mode & 07777, 0640, "with the mode of the umask");
    ok(fstat(file.fd, &about) == 0, "still open");
    vf_newfile_release(&file);
    ok(count() == 1 && file.fd == -1 && !file.path, "it stays");

    ok(!create(&file) && strstr(error.text, "is there already") && count() == 1,
       "nothing is replaced: %s", error.text);
    vf_newfile_release(&file);
    unlink(path);
    ok(create(&file), "created once more");
    vf_newfile_release(&file);
    is_int(count(), 0, "what was not published is removed");
}

static void
test_taken(void)
{
    VF_AUTO_FREE char *long_name = vf_alloc(300);
    struct vf_newfile file;

    ok(symlink("nowhere", path) == 0 && !create(&file), "a symbolic link to nothing is a name");
    has_str(error.text, "a symbolic link", "... as is said");
    vf_newfile_release(&file);
    unlink(path);
    ok(mkdir(path, 0700) == 0 && !create(&file), "so is a folder");
    has_str(error.text, "a folder", "... as is said");
    vf_newfile_release(&file);
    rmdir(path);

    ok(create(&file) && put_file(path, "theirs"), "one that comes meanwhile");
    ok(!vf_newfile_publish(&file, &error), "... is not replaced");
    has_str(error.text, "is there already", "... as is said");
    vf_newfile_release(&file);
    ok(count() == 1, "ours is gone");
    unlink(path);

    ok(create(&file) && rename(file.part, path) == 0, "a part that somebody took away");
    ok(!vf_newfile_publish(&file, &error) && strstr(error.text, "is gone"), "... is missed");
    vf_newfile_release(&file);
    unlink(path);
    ok(create(&file) && unlink(file.part) == 0 && put_file(file.part, "theirs"),
       "one that somebody replaced");
    error = (struct vmfrost_error){.code = VMFROST_OK};
    ok(!vf_newfile_publish(&file, &error), "... is not published");
    VF_AUTO_FREE char *theirs = vf_strdup(file.part);

    vf_newfile_release(&file);
    ok(unlink(theirs) == 0, "... nor removed");

    memset(long_name, 'x', 250);
    VF_AUTO_FREE char *longer = beside(long_name);

    file = (struct vf_newfile)VF_NEWFILE_INIT;
    error = (struct vmfrost_error){.code = VMFROST_OK};
    ok(!vf_newfile_create(&file, longer, &error), "a name that leaves no room for more");
    has_str(error.text, strerror(ENAMETOOLONG), "... as is said");
    vf_newfile_release(&file);
    VF_AUTO_FREE char *missing = beside("missing/file");

    error = (struct vmfrost_error){.code = VMFROST_OK};
    ok(!vf_newfile_create(&file, missing, &error), "a folder that is not there");
    vf_newfile_release(&file);
    is_int(count(), 0, "nothing is left");
}

/* A process that creates one and is killed, or stopped. */
static pid_t
leave(bool alive)
{
    int ends[2];
    char begun;

    if (pipe(ends) < 0)
        return -1;
    pid_t child = fork();

    if (child == 0) {
        struct vf_newfile file;

        if (!create(&file) || write(ends[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ends[1]);
    ok(read(ends[0], &begun, 1) == 1, "a process has begun one");
    close(ends[0]);
    if (!alive) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    return child;
}

static void
test_sweep(void)
{
    static const char *const others[] = {
        ".out.qcow2.0123456789abcde.part",    ".out.qcow2.0123456789abcdeg.part",
        ".out.qcow2.0123456789abcdef.par",    ".out.qcow2.0123456789abcdef.part2",
        ".other.qcow2.0123456789abcdef.part", "out.qcow2.0123456789abcdef.part",
        ".out.qcow2.0123456789abcdef",
    };
    struct vf_newfile file;

    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        VF_AUTO_FREE char *other = beside(others[i]);

        put_file(other, "not ours");
    }
    int before = count();
    VF_AUTO_FREE char *link = beside(".out.qcow2.00000000aaaaaaaa.part");
    VF_AUTO_FREE char *pipe_name = beside(".out.qcow2.00000000bbbbbbbb.part");

    ok(symlink("out", link) == 0 && mkfifo(pipe_name, 0600) == 0, "a link and a pipe by its name");
    pid_t alive = leave(true);

    leave(false);
    is_int(count(), before + 4, "both parts are there");
    ok(create(&file), "the next one");
    is_int(count(), before + 4, "... has swept that of the dead");
    vf_newfile_release(&file);
    is_int(count(), before + 3, "... and no other");
    kill(alive, SIGKILL);
    waitpid(alive, NULL, 0);
    ok(create(&file), "when the other one is gone as well");
    vf_newfile_release(&file);
    is_int(count(), before + 2, "its part goes, too");
}

int
main(void)
{
    folder = scratch_new();
    path = vf_printf("%s/out.qcow2", folder);
    test_life();
    test_taken();
    test_sweep();
    free(path);
    scratch_remove(folder);
    return done_testing();
}
