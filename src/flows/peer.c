/* SPDX-License-Identifier: MIT
 *
 * Whether whoever listens on a socket may be the VM's QEMU.
 *
 * The kernel tells whose process it was that began to listen. Root and we ourselves are trusted,
 * and a VM's setting names anybody else. Without it, somebody else is trusted where nobody but
 * root, we, he himself and the folder's group could have put the socket; and behind QEMU's own
 * answer only the same user is.
 */
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/text.h"

static bool
is_his_place(const char *path, uid_t user)
{
    VF_AUTO_FREE char *real = realpath(path, NULL);
    VF_AUTO_FREE char *folder = vf_folder_of(real ? real : path);
    struct stat about;

    return stat(folder, &about) == 0 && !(about.st_mode & S_IWOTH) &&
           (about.st_uid == 0 || about.st_uid == geteuid() || about.st_uid == user);
}

bool
vf_peer_is_trusted(struct vf_flow *flow, int fd, const char *path, struct vmfrost_error *error)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    bool trusted;

    if (vf_starts_with(path, "tcp:") || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return true;
    if (flow->qemu.pid && peer.pid != flow->qemu.pid)
        vf_log(&flow->log, VMFROST_LOG_INFO,
               "%s is served by process %d, and QEMU is %d: is there a proxy?", path, (int)peer.pid,
               (int)flow->qemu.pid);
    if (peer.uid == 0 || peer.uid == geteuid())
        trusted = true;
    else if (flow->vm.peer_uid)
        trusted = peer.uid == flow->vm.peer_uid;
    else if (flow->peer_known)
        trusted = peer.uid == flow->peer_uid;
    else
        trusted = is_his_place(path, peer.uid);
    if (trusted) {
        flow->peer_known = true;
        flow->peer_uid = peer.uid;
        return true;
    }
    vf_fail(error, VMFROST_UNREACHABLE,
            "%s is served by process %d of user %lu, who may be anybody", path, (int)peer.pid,
            (unsigned long)peer.uid);
    return vf_hint(error,
                   "if that is the user of the VM's QEMU, set its peerUid to %lu (vmfrost help "
                   "add); else see who it is: ps -fp %d",
                   (unsigned long)peer.uid, (int)peer.pid);
}
