// Counts and log; see record.h.

#include "record.h"

#include <deque>
#include <map>
#include <mutex>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>

namespace {

constexpr size_t ENTRIES_MAX = 1 << 20;

struct Record {
    // Not the driver's lock: the libraries beside it write here, too.
    std::mutex lock;
    std::map<std::string, uint64_t> counts;
    std::deque<std::string> entries;
    uint64_t end = 0;
    FILE* file = nullptr;

    Record() {
        const char* name = getenv("QUIRE_EMULATOR_LOG");
        if (!name || !*name) return;
        file = fopen(name, "a");
        if (!file) {
            fprintf(stderr, "emulator: QUIRE_EMULATOR_LOG: cannot append to %s\n", name);
            abort();
        }
        setvbuf(file, nullptr, _IOLBF, 1 << 12);
    }

    void add(const char* text) {
        std::lock_guard<std::mutex> guard(lock);
        entries.emplace_back(text);
        end++;
        if (entries.size() > ENTRIES_MAX) entries.pop_front();
        if (file) fprintf(file, "%s\n", text);
    }
};

Record& record() {
    // Never destroyed: threads may still be at work when the process ends.
    static Record* all = new Record;
    return *all;
}

} // namespace

uint64_t emulator_count(const char* function) {
    std::lock_guard<std::mutex> guard(record().lock);
    auto found = record().counts.find(function);
    return found == record().counts.end() ? 0 : found->second;
}

void emulator_log_clear() {
    std::lock_guard<std::mutex> guard(record().lock);
    record().counts.clear();
    record().entries.clear();
    record().end = 0;
}

uint64_t emulator_log_end() {
    std::lock_guard<std::mutex> guard(record().lock);
    return record().end;
}

int64_t emulator_log_entry(uint64_t number, char* text, size_t text_bytes) {
    std::lock_guard<std::mutex> guard(record().lock);
    uint64_t first = record().end - record().entries.size();
    if (number < first || number >= record().end) return -1;
    const std::string& entry = record().entries[number - first];
    snprintf(text, text_bytes, "%s", entry.c_str());
    return int64_t(entry.size());
}

void emulator_mark(const char* text) { emulator_record("mark %s", text); }

void emulator_record_call(const char* function) {
    std::lock_guard<std::mutex> guard(record().lock);
    record().counts[function]++;
}

void emulator_record(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    record().add(text);
}
