// The stand-in for NVRTC, libnvrtc.so: takes any source that has no `#error` and makes an "image" that names
// the architecture, which the stand-in for the driver accepts on a device of it. Compilations are counted and
// logged, so that a test can tell whether a cache was used.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>

#include "record.h"

namespace {

enum Result { SUCCESS = 0, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6 };

struct Program {
    std::string name, source, log, image;
};

// FNV-1a, so that images of different sources differ.
uint64_t hash(const std::string& text) {
    uint64_t sum = 0xcbf29ce484222325;
    for (unsigned char byte : text) sum = (sum ^ byte) * 0x100000001b3;
    return sum;
}

// Line number of a line that begins with #error, or 0.
unsigned find_error(const std::string& source) {
    unsigned line = 1;
    size_t at = 0;
    while (at < source.size()) {
        size_t end = source.find('\n', at), word = source.find_first_not_of(" \t", at);
        if (word != std::string::npos && !source.compare(word, 6, "#error")) return line;
        if (end == std::string::npos) break;
        at = end + 1;
        line++;
    }
    return 0;
}

void copy_out(const std::string& from, char* to) { memcpy(to, from.data(), from.size()); }

constexpr int ARCHITECTURES[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};
constexpr int ARCHITECTURES_COUNT = sizeof ARCHITECTURES / sizeof *ARCHITECTURES;

} // namespace

EXPORT Result nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

EXPORT const char* nvrtcGetErrorString(Result result) {
    switch (result) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
    }
    return "NVRTC_ERROR unknown";
}

EXPORT Result nvrtcGetNumSupportedArchs(int* count) {
    *count = ARCHITECTURES_COUNT;
    return SUCCESS;
}

EXPORT Result nvrtcGetSupportedArchs(int* numbers) {
    memcpy(numbers, ARCHITECTURES, sizeof ARCHITECTURES);
    return SUCCESS;
}

EXPORT Result nvrtcCreateProgram(Program** program, const char* source, const char* name, int headers_count,
                                 const char* const* headers, const char* const* header_names) {
    if (!source || headers_count < 0 || (headers_count && (!headers || !header_names))) return INVALID_INPUT;
    *program = new Program{name ? name : "default_program", source, "", ""};
    return SUCCESS;
}

EXPORT Result nvrtcDestroyProgram(Program** program) {
    if (!program || !*program) return INVALID_PROGRAM;
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

EXPORT Result nvrtcCompileProgram(Program* program, int options_count, const char* const* options) {
    if (!program) return INVALID_PROGRAM;
    emulator_record_call("nvrtcCompileProgram");
    std::string architecture = "sm_75";
    for (int i = 0; i < options_count; i++)
        for (const char* prefix : {"--gpu-architecture=", "-arch="})
            if (!strncmp(options[i], prefix, strlen(prefix))) architecture = options[i] + strlen(prefix);
    int number = 0;
    if (sscanf(architecture.c_str(), "sm_%d", &number) != 1 &&
        sscanf(architecture.c_str(), "compute_%d", &number) != 1) {
        program->log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
        return INVALID_OPTION;
    }
    emulator_record("nvrtcCompileProgram name=%s arch=%s", program->name.c_str(), architecture.c_str());
    if (unsigned line = find_error(program->source)) {
        program->log = program->name + "(" + std::to_string(line) + "): error: #error directive\n";
        return COMPILATION;
    }
    char text[128];
    snprintf(text, sizeof text, "EMULATED %d %016llx", number, (unsigned long long)hash(program->source));
    program->image.assign(text, strlen(text) + 1);
    return SUCCESS;
}

EXPORT Result nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    if (!program) return INVALID_PROGRAM;
    *bytes = program->log.size() + 1;
    return SUCCESS;
}

EXPORT Result nvrtcGetProgramLog(Program* program, char* log) {
    if (!program) return INVALID_PROGRAM;
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

EXPORT Result nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    if (!program) return INVALID_PROGRAM;
    *bytes = program->image.size();
    return SUCCESS;
}

EXPORT Result nvrtcGetCUBIN(Program* program, char* image) {
    if (!program || program->image.empty()) return INVALID_PROGRAM;
    copy_out(program->image, image);
    return SUCCESS;
}

EXPORT Result nvrtcGetPTXSize(Program* program, size_t* bytes) { return nvrtcGetCUBINSize(program, bytes); }

EXPORT Result nvrtcGetPTX(Program* program, char* image) { return nvrtcGetCUBIN(program, image); }
