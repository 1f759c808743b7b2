/*
 * bcryptprimitives.dll for a Wine that has none: the runtime of Go asks it for random bytes. The bytes of
 * this one are not for secrets; only tests see them.
 */
__declspec(dllimport) unsigned char __stdcall SystemFunction036(void *buffer, unsigned long size); /* RtlGenRandom */

__declspec(dllexport) int __stdcall ProcessPrng(unsigned char *buffer, unsigned long long size)
{
	return SystemFunction036(buffer, (unsigned long)size);
}

int __stdcall DllMainCRTStartup(void *module, unsigned long reason, void *reserved) { return 1; }
