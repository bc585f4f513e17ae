/* SPDX-License-Identifier: MIT
 *
 * A file that says that it is a qcow2 image.
 */
#include "vm/qcow2.h"

#include "fuzz.h"
#include "place.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_qcow2 image;

    place_make();
    VF_AUTO_FREE char *path = vf_printf("%s/image.qcow2", place);

    put(path, data, size);
    int64_t unused = vf_qcow2_unused(path);

    MUST(unused >= 0 && (size_t)unused <= size);
    bool good = vf_qcow2_read(path, &image, &error);

    check_error(good, &error);
    if (!good)
        return 0;
    MUST(size >= 72 && image.size >= 0);
    MUST(!image.backing || (*image.backing && strlen(image.backing) < 1024));
    MUST(!image.backing_format || strlen(image.backing_format) < 16);
    vf_qcow2_release(&image);
    return 0;
}
