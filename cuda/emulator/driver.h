// What the parts of the stand-in for the CUDA driver share: results, and the work in its streams.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "host.h"
#include "record.h"

// The members of CUresult that are used, with CUDA's numbers.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_OUT_OF_RESOURCES = 701,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_WRONG_THREAD = 908,
};

namespace driver {

extern const char* const DEVICE_MEMORY;
extern const char* const PINNED_MEMORY;

// A kernel of a loaded module.
struct Function {
    const emulator::Kernel* kernel;
    size_t shared_bytes_max; // without leave
};

struct Stream;

// A point in a stream: done once the stream has done that many pieces of work.
struct Event {
    bool timing;
    std::shared_ptr<Stream> stream; // where it was recorded last
    uint64_t position;
    double passed_at_ms;
};

struct Graph;

// One piece of work as it waits in a stream or stands in a graph.
struct Work {
    enum Kind { KERNEL, COPY, FILL, RECORD, WAIT, LIBRARY, GRAPH } kind;
    const Function* function = nullptr;
    uint3 grid = {}, block = {};
    size_t shared_bytes = 0;
    std::vector<unsigned char> params; // of the kernel or of the library's function
    void* to = nullptr;
    const void* from = nullptr;
    size_t bytes = 0;
    bool to_host = false, from_host = false;
    unsigned char value = 0;
    std::shared_ptr<Event> event;
    std::shared_ptr<Stream> stream; // WAIT: whose work, and
    uint64_t position = 0;          // how much of it
    void (*run)(const void* params) = nullptr;
    std::shared_ptr<Graph> graph;

    explicit Work(Kind kind) : kind(kind) {}
};

// Work recorded by a capture; the same type when it has been instantiated.
struct Graph {
    std::vector<Work> work;
};

enum class Capture { NONE = 0, ACTIVE = 1, INVALIDATED = 2 };

struct Stream : std::enable_shared_from_this<Stream> {
    unsigned number;
    bool waits_for_null;
    std::deque<Work> queue;
    uint64_t enqueued = 0, done = 0;
    Capture capture = Capture::NONE;
    uint64_t capture_thread = 0;
    std::shared_ptr<Graph> recording;

    // Checks the work, and appends it to the queue or to what is being recorded.
    Result enqueue(Work work, const char* call);
    // Does work until `position` pieces are done.
    void run_until(uint64_t position);
    void run_all() { run_until(enqueued); }
};

// One lock for all: the driver's functions may be called from any thread.
extern std::recursive_mutex lock;

// The stream behind a handle; the null stream for null. Null if there is none of that handle.
std::shared_ptr<Stream> find_stream(void* handle);
// Does all work of all streams, and checks the bytes past every allocation.
void finish_everything();
// Does what the null stream waits for: its own work, and that of streams not made as non-blocking.
void finish_null_stream();
// Refuses a call that is not allowed while the calling thread captures, and spoils the capture.
Result refuse_in_capture(const char* call);

// Says why a call fails, and returns the result.
Result refuse(Result result, const char* call, const char* format, ...) __attribute__((format(printf, 3, 4)));
// Counts the call; fails without a current context.
Result begin(const char* call, bool needs_context = true);

} // namespace driver

// Opens a function of the driver: counted, under the lock, with a current context.
#define BEGIN(name)                                                                                          \
    std::lock_guard<std::recursive_mutex> guard(driver::lock);                                               \
    if (Result begun = driver::begin(name)) return begun;
#define BEGIN_WITHOUT_CONTEXT(name)                                                                          \
    std::lock_guard<std::recursive_mutex> guard(driver::lock);                                               \
    if (Result begun = driver::begin(name, false)) return begun;
// The same for those that may wait for the device or change its memory.
#define BEGIN_OUTSIDE_CAPTURE(name)                                                                          \
    BEGIN(name)                                                                                              \
    if (Result refused = driver::refuse_in_capture(name)) return refused;
