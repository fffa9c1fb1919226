// What was asked of the stand-in libraries: how often each function was called, and a log in words. Tests
// read it in the process through the exported functions, and that of another process from the file that the
// environment variable QUIRE_EMULATOR_LOG names, to which lines are appended.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// How often the function of that name was called since the process began or since `emulator_log_clear`.
EXPORT uint64_t emulator_count(const char* function);
// Forgets counts and log (not the file).
EXPORT void emulator_log_clear();
// Number of the entry after the last one; entries count from 0 at the last clear.
EXPORT uint64_t emulator_log_end();
// Copies entry `number` to `text`, with a NUL; returns its length, or -1 if there is none (any more: the last
// million are kept).
EXPORT int64_t emulator_log_entry(uint64_t number, char* text, size_t text_bytes);
// Adds an entry "mark <text>".
EXPORT void emulator_mark(const char* text);
// Counts a call.
EXPORT void emulator_record_call(const char* function);
// Adds an entry.
EXPORT void emulator_record(const char* format, ...) __attribute__((format(printf, 1, 2)));
