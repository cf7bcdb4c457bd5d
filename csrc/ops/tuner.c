/* tuner.c: a small list of kernel choices. */
#include "ops/tuner.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

const boot_choice *boot_tuner_find(const boot_tuner *tuner, const char *key) {
    for (int i = 0; i < tuner->count; i++)
        if (!strcmp(tuner->choices[i].key, key)) return &tuner->choices[i];
    return NULL;
}

boot_status boot_tuner_put(boot_tuner *tuner, const char *key, const boot_choice *choice) {
    boot_choice *place = (boot_choice *)boot_tuner_find(tuner, key);
    if (!place) {
        if (tuner->count == tuner->capacity) {
            const int capacity = tuner->capacity ? 2 * tuner->capacity : 64;
            void *grown;
            BOOT_TRY(boot_alloc(&grown, capacity * sizeof(boot_choice), true, "kernel choices"));
            if (tuner->count) memcpy(grown, tuner->choices, tuner->count * sizeof(boot_choice));
            boot_free(tuner->choices);
            tuner->choices = grown;
            tuner->capacity = capacity;
        }
        place = &tuner->choices[tuner->count++];
    }
    *place = *choice;
    snprintf(place->key, sizeof place->key, "%s", key);
    return BOOT_OK;
}

boot_status boot_tuner_set(boot_tuner *tuner, const char *key, const char *kernel, double ms) {
    boot_choice choice = {.ms = ms};
    snprintf(choice.kernel, sizeof choice.kernel, "%s", kernel);
    return boot_tuner_put(tuner, key, &choice);
}

const boot_choice *boot_tuner_recall(const boot_plan_context *context, const char *key,
                                     bool *hinted) {
    *hinted = false;
    if (context->thread_independent) return NULL;
    const boot_choice *choice = boot_tuner_find(context->tuner, key);
    if (choice || !context->hints) return choice;
    *hinted = true;
    return boot_tuner_find(context->hints, key);
}

void boot_tuner_close(boot_tuner *tuner) {
    boot_free(tuner->choices);
    *tuner = (boot_tuner){0};
}
