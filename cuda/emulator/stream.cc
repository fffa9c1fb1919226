// Streams that do their work as late as they may: only when somebody waits for it. So a buffer of the host
// that is overwritten too early, or read too early, is wrong every time and not once a month.
//
// The environment variable QUIRE_EMULATOR_TIMING chooses: `late` (the default), `early` (work is done when it
// is enqueued), or `random` (some of it then). Programs must come to the same results with all of them.

#include <map>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "driver.h"

namespace driver {

std::recursive_mutex lock;

namespace {

constexpr size_t QUEUE_MAX = 4096;

enum class Timing { LATE, EARLY, RANDOM };

Timing timing() {
    static const Timing chosen = [] {
        const char* text = getenv("QUIRE_EMULATOR_TIMING");
        if (!text || !strcmp(text, "late")) return Timing::LATE;
        if (!strcmp(text, "early")) return Timing::EARLY;
        if (!strcmp(text, "random")) return Timing::RANDOM;
        emulator::fail("QUIRE_EMULATOR_TIMING=%s: must be late, early or random", text);
    }();
    return chosen;
}

uint64_t this_thread() {
    static thread_local char here;
    return uint64_t(&here);
}

// All streams but destroyed ones, by handle; the null stream has the handle null.
std::map<void*, std::shared_ptr<Stream>>& streams() {
    static auto* all = [] {
        auto* made = new std::map<void*, std::shared_ptr<Stream>>;
        auto null_stream = std::make_shared<Stream>();
        null_stream->number = 0;
        null_stream->waits_for_null = true;
        (*made)[nullptr] = null_stream;
        return made;
    }();
    return *all;
}

template <class T> using Handles = std::map<void*, std::shared_ptr<T>>;
Handles<Event>& events() {
    static auto* all = new Handles<Event>;
    return *all;
}
Handles<Graph>& graphs() {
    static auto* all = new Handles<Graph>;
    return *all;
}
Handles<Graph>& executables() {
    static auto* all = new Handles<Graph>;
    return *all;
}
template <class T> void* insert(Handles<T>& all, std::shared_ptr<T> value) {
    // A handle is never used again, so that a stale one is never valid.
    static uintptr_t next = 0x1000;
    void* handle = (void*)(next += 16);
    all[handle] = std::move(value);
    return handle;
}
template <class T> std::shared_ptr<T> find(Handles<T>& all, void* handle) {
    auto found = all.find(handle);
    return found == all.end() ? nullptr : found->second;
}

double now_ms() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return double(time.tv_sec) * 1e3 + double(time.tv_nsec) * 1e-6;
}

// Between the call and the end of a copy to the host there is nothing to read at its target.
void poison_targets(const Work& work) {
    if (work.kind == Work::COPY && work.to_host) memset(work.to, 0xff, work.bytes);
    if (work.graph)
        for (const Work& part : work.graph->work) poison_targets(part);
}

void run(const Work& work) {
    switch (work.kind) {
    case Work::KERNEL:
        emulator::launch(*work.function->kernel, work.grid, work.block, work.shared_bytes,
                         work.params.data());
        break;
    case Work::COPY: memmove(work.to, work.from, work.bytes); break;
    case Work::FILL: memset(work.to, work.value, work.bytes); break;
    case Work::RECORD: work.event->passed_at_ms = now_ms(); break;
    case Work::WAIT: work.stream->run_until(work.position); break;
    case Work::LIBRARY: work.run(work.params.data()); break;
    case Work::GRAPH:
        for (const Work& part : work.graph->work) run(part);
        break;
    }
}

// Every word of a kernel's parameter that is the address of something must be one that the device may use.
Result check_params(const Work& work, const char* call) {
    for (size_t at = 0; at + 8 <= work.params.size(); at += 8) {
        uint64_t word;
        memcpy(&word, &work.params[at], 8);
        if (word >> 32 == 0 || word >> 47 != 0) continue; // a number, not an address of a process
        const void* address = (const void*)word;
        const char* what = work.kind == Work::KERNEL ? work.function->kernel->name : "a library's function";
        if (emulator::guarded_is_freed(address))
            return refuse(INVALID_VALUE, call, "byte %zu of the parameter of %s points %s", at, what,
                          emulator::guarded_describe(address));
        if (emulator::guarded_kind(address, 0)) continue;
        unsigned char resident;
        void* page = (void*)(word & ~uint64_t(4095));
        if (!emulator::guarded_is_near(address) && mincore(page, 1, &resident) == 0)
            return refuse(INVALID_VALUE, call,
                          "byte %zu of the parameter of %s points to memory of the host, %p", at, what,
                          address);
    }
    return SUCCESS;
}

Result check_range(const void* start, size_t bytes, bool on_host, const char* call) {
    if (on_host ? emulator::guarded_is_freed(start) : emulator::guarded_kind(start, bytes) != DEVICE_MEMORY)
        return refuse(INVALID_VALUE, call, "%zu bytes %s", bytes, emulator::guarded_describe(start));
    return SUCCESS;
}

Result check(const Work& work, const char* call) {
    if (work.kind == Work::KERNEL || work.kind == Work::LIBRARY) return check_params(work, call);
    if (work.kind == Work::GRAPH)
        for (const Work& part : work.graph->work)
            if (Result wrong = check(part, call)) return wrong;
    if (work.kind == Work::COPY)
        if (Result wrong = check_range(work.from, work.bytes, work.from_host, call)) return wrong;
    if (work.kind == Work::COPY || work.kind == Work::FILL)
        return check_range(work.to, work.bytes, work.to_host, call);
    return SUCCESS;
}

} // namespace

Result Stream::enqueue(Work work, const char* call) {
    if (Result wrong = check(work, call)) return wrong;
    if (capture == Capture::INVALIDATED) return refuse(CAPTURE_INVALIDATED, call, "the capture is spoiled");
    if (capture == Capture::ACTIVE) {
        if (work.kind == Work::RECORD || work.kind == Work::WAIT || work.kind == Work::GRAPH) {
            capture = Capture::INVALIDATED;
            return refuse(CAPTURE_UNSUPPORTED, call, "not possible while the stream captures");
        }
        if (work.kind == Work::COPY && (!emulator::guarded_kind(work.to, work.bytes) ||
                                        !emulator::guarded_kind(work.from, work.bytes))) {
            capture = Capture::INVALIDATED;
            return refuse(CAPTURE_UNSUPPORTED, call, "a captured copy needs pinned memory");
        }
        recording->work.push_back(std::move(work));
        return SUCCESS;
    }
    // The null stream and the streams that are not non-blocking wait for each other.
    if (number == 0) finish_null_stream();
    else if (waits_for_null) streams()[nullptr]->run_all();
    poison_targets(work);
    queue.push_back(std::move(work));
    enqueued++;
    if (timing() == Timing::EARLY) run_all();
    else if (timing() == Timing::RANDOM) run_until(done + size_t(rand()) % (queue.size() + 1));
    else if (queue.size() > QUEUE_MAX) run_until(done + 1);
    return SUCCESS;
}

void Stream::run_until(uint64_t position) {
    while (done < position) {
        Work work = std::move(queue.front());
        queue.pop_front();
        run(work);
        done++;
    }
}

std::shared_ptr<Stream> find_stream(void* handle) { return find(streams(), handle); }

void finish_everything() {
    for (auto& [handle, stream] : streams()) stream->run_all();
    emulator::guarded_check();
}

void finish_null_stream() {
    for (auto& [handle, stream] : streams())
        if (stream->waits_for_null) stream->run_all();
}

Result refuse_in_capture(const char* call) {
    for (auto& [handle, stream] : streams())
        if (stream->capture != Capture::NONE && stream->capture_thread == this_thread()) {
            stream->capture = Capture::INVALIDATED;
            return refuse(CAPTURE_UNSUPPORTED, call, "not allowed while a stream of this thread captures");
        }
    return SUCCESS;
}

} // namespace driver

using namespace driver;

#define FIND_STREAM(call)                                                                                    \
    std::shared_ptr<Stream> stream = find_stream(handle);                                                    \
    if (!stream) return refuse(INVALID_HANDLE, call, "%p is no stream", handle);
#define FIND_EVENT(call)                                                                                     \
    std::shared_ptr<Event> event = find(events(), event_handle);                                             \
    if (!event) return refuse(INVALID_HANDLE, call, "%p is no event", event_handle);

EXPORT Result cuStreamCreate(void** handle, unsigned flags) {
    BEGIN("cuStreamCreate")
    static unsigned made;
    auto stream = std::make_shared<Stream>();
    stream->number = ++made;
    stream->waits_for_null = !(flags & 1);
    *handle = insert(streams(), stream);
    return SUCCESS;
}

EXPORT Result cuStreamCreateWithPriority(void** handle, unsigned flags, int) {
    return cuStreamCreate(handle, flags);
}

EXPORT Result cuStreamDestroy_v2(void* handle) {
    BEGIN_OUTSIDE_CAPTURE("cuStreamDestroy")
    FIND_STREAM("cuStreamDestroy")
    if (!handle) return refuse(INVALID_HANDLE, "cuStreamDestroy", "the null stream");
    stream->run_all();
    streams().erase(handle);
    return SUCCESS;
}

EXPORT Result cuStreamSynchronize(void* handle) {
    BEGIN_OUTSIDE_CAPTURE("cuStreamSynchronize")
    FIND_STREAM("cuStreamSynchronize")
    emulator_record("cuStreamSynchronize stream=%u", stream->number);
    if (!handle) finish_null_stream();
    stream->run_all();
    emulator::guarded_check();
    return SUCCESS;
}

// A question lets one piece of work be done, so that asking again and again comes to an end.
EXPORT Result cuStreamQuery(void* handle) {
    BEGIN_OUTSIDE_CAPTURE("cuStreamQuery")
    FIND_STREAM("cuStreamQuery")
    if (stream->done == stream->enqueued) return SUCCESS;
    stream->run_until(stream->done + 1);
    return NOT_READY;
}

EXPORT Result cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    BEGIN("cuStreamWaitEvent")
    FIND_STREAM("cuStreamWaitEvent")
    FIND_EVENT("cuStreamWaitEvent")
    if (!event->stream) return SUCCESS;
    Work work(Work::WAIT);
    work.stream = event->stream;
    work.position = event->position;
    return stream->enqueue(std::move(work), "cuStreamWaitEvent");
}

EXPORT Result cuEventCreate(void** handle, unsigned flags) {
    BEGIN("cuEventCreate")
    auto event = std::make_shared<Event>();
    event->timing = !(flags & 2);
    *handle = insert(events(), event);
    return SUCCESS;
}

EXPORT Result cuEventDestroy_v2(void* event_handle) {
    BEGIN("cuEventDestroy")
    FIND_EVENT("cuEventDestroy")
    events().erase(event_handle);
    return SUCCESS;
}

EXPORT Result cuEventRecord(void* event_handle, void* handle) {
    BEGIN("cuEventRecord")
    FIND_STREAM("cuEventRecord")
    FIND_EVENT("cuEventRecord")
    emulator_record("cuEventRecord event=%p stream=%u", event_handle, stream->number);
    Work work(Work::RECORD);
    work.event = event;
    uint64_t position = stream->enqueued + 1;
    if (Result wrong = stream->enqueue(std::move(work), "cuEventRecord")) return wrong;
    event->stream = stream;
    event->position = position;
    return SUCCESS;
}

EXPORT Result cuEventSynchronize(void* event_handle) {
    BEGIN_OUTSIDE_CAPTURE("cuEventSynchronize")
    FIND_EVENT("cuEventSynchronize")
    emulator_record("cuEventSynchronize event=%p", event_handle);
    if (event->stream) event->stream->run_until(event->position);
    emulator::guarded_check();
    return SUCCESS;
}

EXPORT Result cuEventQuery(void* event_handle) {
    BEGIN_OUTSIDE_CAPTURE("cuEventQuery")
    FIND_EVENT("cuEventQuery")
    if (!event->stream || event->stream->done >= event->position) return SUCCESS;
    event->stream->run_until(event->stream->done + 1);
    return NOT_READY;
}

EXPORT Result cuEventElapsedTime_v2(float* ms, void* from, void* to) {
    BEGIN("cuEventElapsedTime")
    for (void* event_handle : {from, to}) {
        FIND_EVENT("cuEventElapsedTime")
        if (!event->timing || !event->stream)
            return refuse(INVALID_HANDLE, "cuEventElapsedTime", "an event without timing, or not recorded");
        if (event->stream->done < event->position) return NOT_READY;
    }
    *ms = float(find(events(), to)->passed_at_ms - find(events(), from)->passed_at_ms);
    return SUCCESS;
}

EXPORT Result cuEventElapsedTime(float* ms, void* from, void* to) {
    return cuEventElapsedTime_v2(ms, from, to);
}

EXPORT Result cuStreamBeginCapture_v2(void* handle, unsigned) {
    BEGIN("cuStreamBeginCapture")
    FIND_STREAM("cuStreamBeginCapture")
    if (!handle) return refuse(CAPTURE_UNSUPPORTED, "cuStreamBeginCapture", "the null stream cannot capture");
    if (stream->capture != Capture::NONE)
        return refuse(INVALID_VALUE, "cuStreamBeginCapture", "it captures already");
    emulator_record("cuStreamBeginCapture stream=%u", stream->number);
    stream->capture = Capture::ACTIVE;
    stream->capture_thread = this_thread();
    stream->recording = std::make_shared<Graph>();
    return SUCCESS;
}

EXPORT Result cuStreamEndCapture(void* handle, void** graph) {
    BEGIN("cuStreamEndCapture")
    FIND_STREAM("cuStreamEndCapture")
    Capture was = stream->capture;
    if (was == Capture::NONE)
        return refuse(INVALID_VALUE, "cuStreamEndCapture", "the stream does not capture");
    if (stream->capture_thread != this_thread())
        return refuse(CAPTURE_WRONG_THREAD, "cuStreamEndCapture", "another thread began it");
    stream->capture = Capture::NONE;
    std::shared_ptr<Graph> recorded = std::move(stream->recording);
    *graph = nullptr;
    if (was == Capture::INVALIDATED)
        return refuse(CAPTURE_INVALIDATED, "cuStreamEndCapture", "it was spoiled");
    *graph = insert(graphs(), recorded);
    emulator_record("cuStreamEndCapture stream=%u graph=%p nodes=%zu", stream->number, *graph,
                    recorded->work.size());
    return SUCCESS;
}

EXPORT Result cuStreamIsCapturing(void* handle, int* status) {
    BEGIN("cuStreamIsCapturing")
    FIND_STREAM("cuStreamIsCapturing")
    *status = int(stream->capture);
    return SUCCESS;
}

EXPORT Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    BEGIN("cuGraphInstantiate")
    std::shared_ptr<Graph> recorded = find(graphs(), graph);
    if (!recorded) return refuse(INVALID_HANDLE, "cuGraphInstantiate", "%p is no graph", graph);
    for (const Work& work : recorded->work)
        if (Result wrong = check(work, "cuGraphInstantiate")) return wrong;
    *executable = insert(executables(), recorded);
    emulator_record("cuGraphInstantiate graph=%p executable=%p nodes=%zu", graph, *executable,
                    recorded->work.size());
    return SUCCESS;
}

EXPORT Result cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    BEGIN("cuGraphGetNodes")
    std::shared_ptr<Graph> recorded = find(graphs(), graph);
    if (!recorded) return refuse(INVALID_HANDLE, "cuGraphGetNodes", "%p is no graph", graph);
    if (nodes) return refuse(NOT_SUPPORTED, "cuGraphGetNodes", "only their number can be had");
    *count = recorded->work.size();
    return SUCCESS;
}

EXPORT Result cuGraphUpload(void* executable, void* handle) {
    BEGIN("cuGraphUpload")
    FIND_STREAM("cuGraphUpload")
    if (!find(executables(), executable))
        return refuse(INVALID_HANDLE, "cuGraphUpload", "%p is no graph", executable);
    return SUCCESS;
}

EXPORT Result cuGraphLaunch(void* executable, void* handle) {
    BEGIN("cuGraphLaunch")
    FIND_STREAM("cuGraphLaunch")
    std::shared_ptr<Graph> graph = find(executables(), executable);
    if (!graph) return refuse(INVALID_HANDLE, "cuGraphLaunch", "%p is no instantiated graph", executable);
    emulator_record("cuGraphLaunch executable=%p nodes=%zu stream=%u", executable, graph->work.size(),
                    stream->number);
    Work work(Work::GRAPH);
    work.graph = graph;
    return stream->enqueue(std::move(work), "cuGraphLaunch");
}

EXPORT Result cuGraphDestroy(void* graph) {
    BEGIN("cuGraphDestroy")
    if (!graphs().erase(graph)) return refuse(INVALID_HANDLE, "cuGraphDestroy", "%p is no graph", graph);
    return SUCCESS;
}

EXPORT Result cuGraphExecDestroy(void* executable) {
    BEGIN("cuGraphExecDestroy")
    if (!executables().erase(executable))
        return refuse(INVALID_HANDLE, "cuGraphExecDestroy", "%p is no graph", executable);
    return SUCCESS;
}
