/* lock.h: a lock that is held for a look through a short list, and so waits without sleeping. */
#ifndef BOOT_LOCK_H
#define BOOT_LOCK_H

#include <stdatomic.h>

static inline void boot_lock(atomic_flag *held) {
    while (atomic_flag_test_and_set_explicit(held, memory_order_acquire)) {
    }
}

static inline void boot_unlock(atomic_flag *held) {
    atomic_flag_clear_explicit(held, memory_order_release);
}

#endif
