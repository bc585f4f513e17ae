"""How long a write of the guest waits for a snapshot: the longest of small writes, one every 2 ms."""
import lab

SETTLE_S = 0.3  # writes before and after, so that what came before is not counted
DIRTY_MIB = 60
SPEED = 20 << 20  # of the disk with the dirty pages, in bytes per second
# The agent freezes what was mounted last first: that file system waits until the others are frozen, too.
DISKS = (("last", 160), ("first", 64))


def disks():
    return [lab.Disk(name, size=size << 20) for name, size in DISKS]


def prepare(vm):
    """Dirty pages are kept in the guest's cache until somebody asks for them."""
    vm.sh("echo 70 > /proc/sys/vm/dirty_ratio; echo 60 > /proc/sys/vm/dirty_background_ratio; "
          "echo 60000 > /proc/sys/vm/dirty_expire_centisecs; "
          "echo 60000 > /proc/sys/vm/dirty_writeback_centisecs")


def limit(vm, speed):
    device = [about["qdev"] for about in vm.qmp("query-block") if "inserted" in about][0]
    vm.qmp("block_set_io_throttle", {"id": device, "bps": 0, "bps_rd": 0, "bps_wr": speed, "iops": 0,
                                     "iops_rd": 0, "iops_wr": 0})


def stall(vm, method):
    """The longest wait of a write of the idle guest, in ms."""
    vm.sh(f"sleep {SETTLE_S}")
    vm.probe()
    method.run(vm)
    vm.sh(f"sleep {SETTLE_S}")
    longest = vm.probe().longest_us / 1000
    method.undo(vm)
    return longest


def stall_dirty(vm, method):
    """The same with dirty pages of a slow disk, which is frozen last."""
    vm.sh(f"dd if=/dev/zero of=/mnt/last/file bs=1M count={DIRTY_MIB} conv=notrunc 2>/dev/null",
          timeout=30)
    limit(vm, SPEED)
    vm.sh(f"sleep {SETTLE_S}")
    vm.probe()
    method.run(vm)
    vm.sh(f"sleep {SETTLE_S}")
    longest = vm.probe().longest_us / 1000
    limit(vm, 0)
    method.undo(vm)
    vm.sh("sync", timeout=60)
    return longest
