/* SPDX-License-Identifier: MIT
 *
 * Only in VARIANT=cov: a process that ends without exit() would lose its counters. So the linker
 * leads _exit() and raise() here (--wrap), and they are written before.
 *
 * Lost remain those of a process that somebody else kills.
 */
#include <gcov.h>
#include <signal.h>
#include <unistd.h>

/* The linker's names. */
void __real__exit(int code) __attribute__((noreturn));
int __real_raise(int number);
void __wrap__exit(int code) __attribute__((noreturn));
int __wrap_raise(int number);

void
__wrap__exit(int code)
{
    __gcov_dump();
    __real__exit(code);
}

/* One that was stopped counts on, from nothing: what is written is added up. */
int
__wrap_raise(int number)
{
    __gcov_dump();
    __gcov_reset();
    return __real_raise(number);
}
