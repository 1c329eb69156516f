// A libcuda.so.1 without a GPU, for tests: its device memory is the process's own. FAULT says how it misbehaves.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NONE, CORRUPT, STUCKBIT, HANG, CRASH, NODEVICE, TWO, REFUSES, OTHER, FULL, SMALL, LATE, EXITS, NOISY, LAZY, NOSY, SPREAD };
#ifndef FAULT
#define FAULT NONE
#endif

static size_t allocated;
static unsigned char *memory;

int cuInit(unsigned flags) {
	(void)flags;
	if (FAULT == NODEVICE) return 100;
	if (FAULT == HANG) {
#ifdef PIDFILE
		pid_t pid = fork(); // as CUDA starts nvidia-modprobe
		if (pid == 0) for (;;) pause();
		FILE *f = fopen(PIDFILE, "w");
		fprintf(f, "%d\n", (int)pid);
		fclose(f);
#endif
		signal(SIGTERM, SIG_IGN);
		for (;;) pause();
	}
	if (FAULT == NOSY) {
		extern char **environ;
		for (char **e = environ; *e; e++) if (strncmp(*e, "CUDA_", 5) != 0) return 999;
		const char *uuid = getenv("CUDA_VISIBLE_DEVICES");
		if (!uuid || strncmp(uuid, "MIG-", 4) != 0) return 100;
	}
	return 0;
}
int cuDeviceGetCount(int *n) { *n = FAULT == TWO ? 2 : 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int d) {
	(void)d;
	for (int i = 0; i < 16; i++) uuid[i] = i + (FAULT == OTHER);
	return 0;
}
int cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; *c = &memory; return FAULT == REFUSES ? 46 : 0; }
int cuCtxSetCurrent(void *c) { return c == &memory ? 0 : 201; }
int cuMemGetInfo_v2(size_t *f, size_t *all) {
	*all = 1u << 30;
	*f = FAULT == FULL ? 4096 : FAULT == SMALL ? 5u << 20 : 1u << 29;
	return 0;
}
int cuMemAlloc_v2(unsigned long long *p, size_t n) {
	if (FAULT == CRASH) *(volatile int *)8 = 1;
	memory = malloc(n);
	allocated = n;
	*p = 0x7f0000000000ull;
	return memory ? 0 : 2;
}
int cuMemsetD32_v2(unsigned long long p, unsigned v, size_t n) {
	if (n * 4 > allocated || p != 0x7f0000000000ull) return 1;
	for (size_t i = 0; i < n; i++) memcpy(memory + 4 * i, &v, 4);
	if (FAULT == STUCKBIT) memory[allocated - 1] |= 0x10;
	return 0;
}
int cuMemcpyHtoD_v2(unsigned long long p, const void *from, size_t n) {
	if (n > allocated || p != 0x7f0000000000ull) return 1;
	memcpy(memory, from, n);
	if (FAULT == CORRUPT) memory[4097] ^= 0x80;
	if (FAULT == SPREAD) memmove(memory + 4096, memory, n - 4096); // as if an address line was broken
	return 0;
}
int cuMemcpyDtoH_v2(void *to, unsigned long long p, size_t n) {
	if (n > allocated || p != 0x7f0000000000ull) return 1;
	if (FAULT != LAZY) memcpy(to, memory, n);
	if (FAULT == NOISY) printf("the driver says something\n"), fflush(stdout);
	return 0;
}
int cuCtxSynchronize(void) { return FAULT == LATE ? 719 : 0; }
int cuMemFree_v2(unsigned long long p) {
	(void)p;
	free(memory);
	if (FAULT == EXITS) {
		fprintf(stderr, "the driver gives up\n");
		_exit(7);
	}
	return 0;
}
#ifndef NONAMES
int cuGetErrorName(int r, const char **name) {
	*name = r == 100 ? "CUDA_ERROR_NO_DEVICE" : r == 46 ? "CUDA_ERROR_DEVICE_UNAVAILABLE" : r == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_UNKNOWN";
	return 0;
}
#endif
