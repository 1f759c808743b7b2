/*
 * Memory of the client. Wine can read and write another process, but stops it for that, and a client that is
 * stopped while it hands a large buffer to the server does not survive it. So the system below Wine is asked first,
 * for which the client tells its process id there.
 */
#include "model.h"

__declspec(dllimport) HANDLE __stdcall OpenProcess(ULONG access, int inherit, ULONG pid);
__declspec(dllimport) int __stdcall CloseHandle(HANDLE h);
__declspec(dllimport) int __stdcall ReadProcessMemory(HANDLE h, const void *from, void *to, SIZE_T n, SIZE_T *done);
__declspec(dllimport) int __stdcall WriteProcessMemory(HANDLE h, void *to, const void *from, SIZE_T n, SIZE_T *done);

#define PROCESS_VM_ACCESS 0x0038 /* operation, read, write */

#define LINUX_PROCESS_VM_READV  310
#define LINUX_PROCESS_VM_WRITEV 311

static struct { ULONG pid, host; } client_ids; /* what TEST_CLIENT told */

void tell_client(ULONG pid, ULONG host)
{
	client_ids.pid = pid;
	client_ids.host = host;
}

static BOOLEAN host_copy(long call, ULONG host, ULONG64 address, void *buffer, SIZE_T size)
{
	struct { void *base; SIZE_T size; } here = {buffer, size}, there = {(void *)(ULONG_PTR)address, size};
	register long long r10 __asm__("r10") = (long long)&there;
	register long long r8 __asm__("r8") = 1;
	register long long r9 __asm__("r9") = 0;
	long long result;

	__asm__ volatile("syscall"
	                 : "=a"(result)
	                 : "a"((long long)call), "D"((long long)host), "S"(&here), "d"(1LL), "r"(r10), "r"(r8), "r"(r9)
	                 : "rcx", "r11", "memory");
	return result == (long long)size;
}

static BOOLEAN wine_copy(BOOLEAN write, ULONG pid, ULONG64 address, void *buffer, SIZE_T size)
{
	HANDLE h = OpenProcess(PROCESS_VM_ACCESS, 0, pid);
	SIZE_T done = 0;
	int ok;

	if (h == NULL)
		return FALSE;
	if (write)
		ok = WriteProcessMemory(h, (void *)(ULONG_PTR)address, buffer, size, &done);
	else
		ok = ReadProcessMemory(h, (const void *)(ULONG_PTR)address, buffer, size, &done);
	CloseHandle(h);
	return ok && done == size;
}

BOOLEAN client(ULONG pid, BOOLEAN write, ULONG64 address, void *buffer, SIZE_T size)
{
	long call = write ? LINUX_PROCESS_VM_WRITEV : LINUX_PROCESS_VM_READV;

	if (client_ids.pid == pid && host_copy(call, client_ids.host, address, buffer, size))
		return TRUE;
	return wine_copy(write, pid, address, buffer, size);
}
