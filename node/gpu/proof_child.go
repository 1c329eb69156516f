//go:build linux && cgo

package gpu

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

// The part of CUDA's driver API that is used, by NVIDIA's public documentation of it; no header of CUDA is needed to build.
typedef int cu_result; // 0 is success
typedef int cu_device;
typedef void *cu_context;
typedef unsigned long long cu_pointer;

static cu_result (*cu_init)(unsigned int);
static cu_result (*cu_device_count)(int *);
static cu_result (*cu_device_get)(cu_device *, int);
static cu_result (*cu_device_uuid)(unsigned char *, cu_device); // younger than the rest: may be missing
static cu_result (*cu_primary_retain)(cu_context *, cu_device);
static cu_result (*cu_set_current)(cu_context);
static cu_result (*cu_mem_info)(size_t *, size_t *);
static cu_result (*cu_mem_alloc)(cu_pointer *, size_t);
static cu_result (*cu_memset32)(cu_pointer, unsigned int, size_t);
static cu_result (*cu_copy_up)(cu_pointer, const void *, size_t);
static cu_result (*cu_copy_down)(void *, cu_pointer, size_t);
static cu_result (*cu_synchronize)(void);
static cu_result (*cu_mem_free)(cu_pointer);
static cu_result (*cu_error_name)(cu_result, const char **); // may be missing

static const struct { const char *name; void *into; int needed; } functions[] = {
	{"cuInit", &cu_init, 1}, {"cuDeviceGetCount", &cu_device_count, 1}, {"cuDeviceGet", &cu_device_get, 1},
	{"cuDeviceGetUuid", &cu_device_uuid, 0}, {"cuDevicePrimaryCtxRetain", &cu_primary_retain, 1}, {"cuCtxSetCurrent", &cu_set_current, 1},
	{"cuMemGetInfo_v2", &cu_mem_info, 1}, {"cuMemAlloc_v2", &cu_mem_alloc, 1}, {"cuMemsetD32_v2", &cu_memset32, 1},
	{"cuMemcpyHtoD_v2", &cu_copy_up, 1}, {"cuMemcpyDtoH_v2", &cu_copy_down, 1}, {"cuCtxSynchronize", &cu_synchronize, 1},
	{"cuMemFree_v2", &cu_mem_free, 1}, {"cuGetErrorName", &cu_error_name, 0},
};

// gb_prepare lets a crash of the driver end this process by its signal: Go's handler would print a long story instead.
static void gb_prepare(void) {
	static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
	struct rlimit none = {0, 0};
	for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++) signal(deadly[i], SIG_DFL);
	setrlimit(RLIMIT_CORE, &none);
	signal(SIGALRM, SIG_DFL);
	alarm(30); // should nobody be left to end it
}

// gb_load binds the library at path: 1 when it is bound, 0 when it cannot be opened, -1 when it is not CUDA's; why is told then.
static int gb_load(const char *path, char *why, size_t room) {
	void *lib = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	if (!lib) {
		const char *error = dlerror();
		snprintf(why, room, "%s", error ? error : path);
		return 0;
	}
	for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
		void *f = dlsym(lib, functions[i].name);
		memcpy(functions[i].into, &f, sizeof f);
		if (!f && functions[i].needed) {
			snprintf(why, room, "%s has no %s: it is not the library of a CUDA driver", path, functions[i].name);
			return -1;
		}
	}
	return 1;
}

static void gb_at(const char *step) { // write(2), so that nothing is lost in a crash
	char line[96];
	int n = snprintf(line, sizeof line, "at %s\n", step);
	if (write(1, line, n) < 0) _exit(3); // who asked is gone
}

static int gb_bad(const char *step, cu_result r, char *why, size_t room) {
	const char *name = NULL;
	if (r == 0) return 0;
	if (cu_error_name && cu_error_name(r, &name) == 0 && name) snprintf(why, room, "%s: %s (%d)", step, name, r);
	else snprintf(why, room, "%s: CUDA error %d", step, r);
	return 1;
}

#define GB_TRY(step, call) do { gb_at(step); if (gb_bad(step, call, why, room)) return -1; } while (0)

static const uint32_t constants[] = {0x00000000u, 0xffffffffu, 0xaaaaaaaau, 0x55555555u};
enum { CONSTANTS = 4 };

// gb_word is what pattern k has at word i: four constants, which the GPU writes, and one without a period, which is sent to it.
static uint32_t gb_word(int k, size_t i) {
	if (k < CONSTANTS) return constants[k];
	uint32_t x = (uint32_t)i * 2654435761u + 0x9e3779b9u;
	x ^= x >> 16; x *= 0x85ebca6bu; x ^= x >> 13;
	return x;
}

static int gb_pattern(int k, cu_pointer at, uint32_t *host, size_t words, char *why, size_t room) {
	if (k < CONSTANTS) {
		GB_TRY("cuMemsetD32_v2", cu_memset32(at, constants[k], words));
	} else {
		for (size_t i = 0; i < words; i++) host[i] = gb_word(k, i);
		GB_TRY("cuMemcpyHtoD_v2", cu_copy_up(at, host, words * 4));
	}
	for (size_t i = 0; i < words; i++) host[i] = ~gb_word(k, i); // a copy that does nothing must not pass
	GB_TRY("cuMemcpyDtoH_v2", cu_copy_down(host, at, words * 4));
	gb_at("comparing");
	size_t wrong = 0, first = 0;
	for (size_t i = 0; i < words; i++) {
		if (host[i] != gb_word(k, i) && wrong++ == 0) first = i;
	}
	if (wrong == 0) return 0;
	snprintf(why, room, "its memory gives back other than was written: %zu of %zu words are wrong, the first at word %zu: 0x%08x, not 0x%08x",
		wrong, words, first, host[first], gb_word(k, first));
	return -1;
}

// gb_prove has the one device that CUDA shows compute: 0 when it did what it should, with *bytes tested, -1 with why when not.
// uuid is what it has to be, NULL when that is not looked at.
static int gb_prove(const unsigned char *uuid, size_t most, unsigned long long *bytes, char *why, size_t room) {
	int count = 0;
	cu_device device;
	cu_context context;
	cu_pointer at;
	size_t free_bytes = 0, all_bytes = 0;
	GB_TRY("cuInit", cu_init(0));
	GB_TRY("cuDeviceGetCount", cu_device_count(&count));
	if (count != 1) {
		snprintf(why, room, "CUDA shows %d devices of this UUID", count);
		return -1;
	}
	GB_TRY("cuDeviceGet", cu_device_get(&device, 0));
	if (uuid && cu_device_uuid) {
		unsigned char have[16] = {0};
		GB_TRY("cuDeviceGetUuid", cu_device_uuid(have, device));
		if (memcmp(have, uuid, sizeof have) != 0) {
			snprintf(why, room, "CUDA shows another device under its UUID");
			return -1;
		}
	}
	GB_TRY("cuDevicePrimaryCtxRetain", cu_primary_retain(&context, device));
	GB_TRY("cuCtxSetCurrent", cu_set_current(context));
	GB_TRY("cuMemGetInfo_v2", cu_mem_info(&free_bytes, &all_bytes));
	size_t size = free_bytes / 2 < most ? free_bytes / 2 : most;
	size &= ~(size_t)0xfffff;
	if (size == 0) {
		snprintf(why, room, "its memory is full: %zu of %zu bytes are free", free_bytes, all_bytes);
		return -1;
	}
	uint32_t *host = malloc(size);
	if (!host) {
		snprintf(why, room, "this machine has no %zu bytes of memory left to compare with", size);
		return -1;
	}
	GB_TRY("cuMemAlloc_v2", cu_mem_alloc(&at, size));
	for (int k = 0; k <= CONSTANTS; k++) {
		if (gb_pattern(k, at, host, size / 4, why, room) != 0) return -1;
	}
	GB_TRY("cuCtxSynchronize", cu_synchronize());
	GB_TRY("cuMemFree_v2", cu_mem_free(at));
	*bytes = size;
	return 0;
}
*/
import "C"

import (
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"
)

// libraries are where CUDA's driver library may be, in this order: where the system's loader looks, and where WSL, NixOS and
// images for containers have it without telling the loader.
var libraries = []string{"libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "/run/opengl-driver/lib/libcuda.so.1", "/usr/local/nvidia/lib64/libcuda.so.1"}

// RunProof is the body of the child process that NewProver starts: it has one GPU compute and says on standard output what
// came of it. args are those that the prover appended: the GPU's UUID and the library's path, which may be empty. A driver that
// crashes ends the process by a signal.
func RunProof(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("gpu: a test wants a UUID and a library, not %d arguments", len(args))
	}
	runtime.LockOSThread() // CUDA keeps its context by thread
	C.gb_prepare()
	paths := libraries
	if args[1] != "" {
		paths = args[1:]
	}
	why := (*C.char)(C.malloc(512))
	defer C.free(unsafe.Pointer(why))
	if problem := load(paths, why); problem != "" {
		return say(sayUnable, problem)
	}
	var uuid *C.uchar
	if raw, ok := wholeUUID(args[0]); ok {
		uuid = (*C.uchar)(C.CBytes(raw))
		defer C.free(unsafe.Pointer(uuid))
	}
	var tested C.ulonglong
	if C.gb_prove(uuid, proofBytes, &tested, why, 512) != 0 {
		return say(sayFailed, C.GoString(why))
	}
	return say(sayPassed, fmt.Sprint(uint64(tested)))
}

// load binds the first of some libraries that is there; the problem is the first one's.
func load(paths []string, why *C.char) (problem string) {
	for _, path := range paths {
		name := C.CString(path)
		found := C.gb_load(name, why, 512)
		C.free(unsafe.Pointer(name))
		switch {
		case found > 0:
			return ""
		case found < 0:
			return C.GoString(why)
		case problem == "":
			problem = "CUDA's driver library cannot be opened: " + C.GoString(why)
		}
	}
	return problem
}

func say(word, what string) error {
	_, err := fmt.Fprintln(os.Stdout, word+strings.ReplaceAll(what, "\n", " "))
	return err
}

// wholeUUID reads the UUID of a whole GPU as CUDA tells it; a slice's is not compared, as drivers differ in what they tell.
func wholeUUID(uuid string) ([]byte, bool) {
	text, ok := strings.CutPrefix(uuid, "GPU-")
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	return raw, ok && err == nil && len(raw) == 16
}
