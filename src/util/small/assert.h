/* SPDX-License-Identifier: MIT
 *
 * Instead of the C library's where every byte counts (make small): a failed assertion ends the
 * process in the same way, but does not say which one it was; a core dump does. Like that one, this
 * file can be included again and again.
 */
#include <stdlib.h>

#undef assert
#define assert(condition) ((condition) ? (void)0 : abort())
#undef static_assert
#define static_assert _Static_assert
