/* The driver's device: handles, and the requests on them (windows-driver.md 5). See model.h. */
#include "model.h"

#define POOL_TAG 0x74766944

LIST_ENTRY contexts = {&contexts, &contexts};

void *allocate(SIZE_T size) { return ExAllocatePoolWithTag(NonPagedPool, size, POOL_TAG); }

void finish(PIRP irp, NTSTATUS status, ULONG_PTR information)
{
	irp->IoStatus.Status = status;
	irp->IoStatus.Information = information;
	IoCompleteRequest(irp, IO_NO_INCREMENT);
}

/* ---- Operations ---- */

static BOOLEAN valid_flags(ULONG layer, ULONG64 flags)
{
	if ((flags & ~(ULONG64)FLAG_ALL) || (flags & 3) == 3 || (flags & 12) == 12)
		return FALSE;
	if ((layer == LAYER_FLOW || layer == LAYER_REFLECT) && (flags & 5) != 5)
		return FALSE;
	return layer != LAYER_SOCKET || (flags & FLAG_RECV_ONLY);
}

static NTSTATUS initialise(struct context *c, struct request *r, ULONG_PTR *information)
{
	static ULONG openings;
	ULONG bits, priority = u32(r->record + 4), number = openings++ & 0xFFFF;

	if (c->state != CREATED)
		return STATUS_INVALID_DEVICE_STATE;
	if (r->out_size != 64)
		return r->out_size == 0 ? STATUS_BUFFER_TOO_SMALL : STATUS_INVALID_PARAMETER;
	bits = u32(r->out + 16);
	if (u64(r->out) != MAGIC_CLIENT || u32(r->out + 8) < 2 || (bits != 32 && bits != 64))
		return STATUS_INVALID_PARAMETER;
	log_request(r, NULL, 0);
	memcpy(r->out, &version, 16);
	bits = 64;
	memcpy(r->out + 16, &bits, 4);
	c->layer = u32(r->record);
	c->flags = u64(r->record + 8);
	if (c->layer > LAYER_REFLECT || priority > 60000 || !valid_flags(c->layer, c->flags))
		return STATUS_INVALID_PARAMETER;
	c->priority = (SHORT)((LONG)priority - 30000);
	c->order = priority << 16 | number;
	c->state = INITIALISED;
	RemoveEntryList(&c->link);
	insert_context(c);
	*information = 64; /* the real driver says 0, but Wine copies back what this says */
	return STATUS_SUCCESS;
}

static NTSTATUS start(struct context *c, const struct request *r)
{
	ULONG count = r->out_size / INSTRUCTION_SIZE;

	if (c->state != INITIALISED)
		return STATUS_INVALID_DEVICE_STATE;
	log_request(r, NULL, 0);
	if (u64(r->record) & ~(ULONG64)HINTS_ALL)
		return STATUS_INVALID_PARAMETER;
	if (r->out_size == 0)
		return STATUS_BUFFER_TOO_SMALL;
	c->state = OPEN; /* before the filter is looked at: a refused one cannot be repeated */
	if (r->out_size % INSTRUCTION_SIZE || count > FILTER_MAX)
		return STATUS_INVALID_PARAMETER;
	memcpy(c->filter, r->out, r->out_size);
	c->length = count;
	if (!valid_filter(c)) {
		c->length = 0;
		return STATUS_INVALID_PARAMETER;
	}
	c->hints = u64(r->record);
	c->opened = now;
	reflect_event(c, EVENT_REFLECT_OPEN);
	if (c->layer == LAYER_REFLECT)
		reflect_replay(c);
	return STATUS_SUCCESS;
}

static NTSTATUS shut_down(struct context *c, const struct request *r)
{
	ULONG how = u32(r->record);

	if (c->state != OPEN)
		return STATUS_INVALID_DEVICE_STATE;
	if (how < 1 || how > 3)
		return STATUS_INVALID_PARAMETER;
	log_request(r, NULL, 0);
	c->recv_down |= (how & 1) != 0;
	c->send_down |= (how & 2) != 0;
	service(c);
	return STATUS_SUCCESS;
}

static NTSTATUS set_param(struct context *c, const struct request *r)
{
	static const ULONG64 least[] = {32, 100, 65535}, most[] = {16384, 16000, 33554432};
	ULONG64 value = u64(r->record);
	ULONG param = u32(r->record + 8);

	if (c->state != OPEN)
		return STATUS_INVALID_DEVICE_STATE;
	log_request(r, NULL, 0);
	if (param > 2 || value < least[param] || value > most[param])
		return STATUS_INVALID_PARAMETER;
	c->params[param] = value;
	return STATUS_SUCCESS;
}

static NTSTATUS get_param(struct context *c, const struct request *r, ULONG_PTR *information)
{
	ULONG param = u32(r->record);

	if (r->out_size != 8)
		return r->out_size == 0 ? STATUS_BUFFER_TOO_SMALL : STATUS_INVALID_PARAMETER;
	if (c->state != OPEN)
		return STATUS_INVALID_DEVICE_STATE;
	if (param > 4)
		return STATUS_INVALID_PARAMETER;
	memcpy(r->out, &c->params[param], 8);
	*information = 8; /* as with INITIALIZE */
	return STATUS_SUCCESS;
}

static NTSTATUS carry_out(struct context *c, PIRP irp, struct request *r, ULONG_PTR *information)
{
	switch (r->code) {
	case IOCTL_INITIALIZE:
		return initialise(c, r, information);
	case IOCTL_STARTUP:
		return start(c, r);
	case IOCTL_RECV:
		return receive(c, irp, r);
	case IOCTL_SEND:
		return inject(c, r, information);
	case IOCTL_SET_PARAM:
		return set_param(c, r);
	case IOCTL_GET_PARAM:
		return get_param(c, r, information);
	case IOCTL_SHUTDOWN:
		return shut_down(c, r);
	}
	return STATUS_INVALID_DEVICE_REQUEST;
}

/* Carries a request out, unless it fails; a receive that waits is STATUS_PENDING. */
static NTSTATUS operate(PIRP irp, struct request *r, ULONG_PTR *information)
{
	struct context *c = IoGetCurrentIrpStackLocation(irp)->FileObject->FsContext;
	NTSTATUS status;

	if (fails(r->code, INSTEAD))
		return (NTSTATUS)fault.status;
	status = carry_out(c, irp, r, information);
	if (status != STATUS_PENDING && fails(r->code, AFTER))
		return (NTSTATUS)fault.status;
	return status;
}

/* ---- Dispatch ---- */

/* Sets what a request is about. */
static void read_request(PIRP irp, struct request *r)
{
	PIO_STACK_LOCATION stack = IoGetCurrentIrpStackLocation(irp);

	memset(r, 0, sizeof *r);
	r->code = stack->Parameters.DeviceIoControl.IoControlCode;
	r->pid = (ULONG)(ULONG_PTR)irp->Tail.Overlay.DriverContext[0];
	memcpy(r->record, irp->AssociatedIrp.SystemBuffer, 16);
	if (irp->MdlAddress != NULL) {
		r->out = MmGetSystemAddressForMdlSafe(irp->MdlAddress, NormalPagePriority);
		r->out_size = stack->Parameters.DeviceIoControl.OutputBufferLength;
	}
}

/* Carries out a request that was held. */
void operate_held(PIRP irp)
{
	struct request r;
	ULONG_PTR information = 0;
	NTSTATUS status;

	read_request(irp, &r);
	status = operate(irp, &r, &information);
	if (status != STATUS_PENDING)
		finish(irp, status, information);
}

/* A request of the protocol. The framework of the real driver marks each pending, whenever it completes. */
static NTSTATUS request(PIRP irp, ULONG code, ULONG in)
{
	BOOLEAN pends = !(mode & MODE_AT_ONCE), held = fails(code, HELD);
	ULONG_PTR information = 0;
	struct request r;
	NTSTATUS status = in == 0 ? STATUS_BUFFER_TOO_SMALL : STATUS_INVALID_PARAMETER;

	irp->Tail.Overlay.DriverContext[0] = PsGetCurrentProcessId();
	if (pends || held)
		IoMarkIrpPending(irp);
	if (held) {
		hold(irp);
		return STATUS_PENDING;
	}
	if (in >= 16) {
		read_request(irp, &r);
		status = operate(irp, &r, &information);
	}
	if (status == STATUS_PENDING)
		return status;
	finish(irp, status, information);
	return pends ? STATUS_PENDING : status;
}

static NTSTATUS NTAPI control(PDEVICE_OBJECT device, PIRP irp)
{
	PIO_STACK_LOCATION stack = IoGetCurrentIrpStackLocation(irp);
	ULONG code = stack->Parameters.DeviceIoControl.IoControlCode;
	ULONG in = stack->Parameters.DeviceIoControl.InputBufferLength;
	ULONG out = stack->Parameters.DeviceIoControl.OutputBufferLength;
	struct request r = {code, (ULONG)(ULONG_PTR)PsGetCurrentProcessId()};
	ULONG_PTR information = 0;
	NTSTATUS status;

	if ((code & 3) != METHOD_BUFFERED)
		return request(irp, code, in);
	status = test(&r, irp->AssociatedIrp.SystemBuffer, in, out, &information);
	finish(irp, status, information);
	return status;
}

static NTSTATUS NTAPI create(PDEVICE_OBJECT device, PIRP irp)
{
	struct context *c = allocate(sizeof *c);

	if (c == NULL) {
		finish(irp, STATUS_INSUFFICIENT_RESOURCES, 0);
		return STATUS_INSUFFICIENT_RESOURCES;
	}
	memset(c, 0, sizeof *c);
	c->pid = (ULONG)(ULONG_PTR)PsGetCurrentProcessId();
	c->params[0] = 4096;
	c->params[1] = 2000;
	c->params[2] = 4194304;
	c->params[3] = c->params[4] = 2;
	InitializeListHead(&c->items);
	InitializeListHead(&c->flows);
	InitializeListHead(&c->irps);
	InsertTailList(&contexts, &c->link);
	IoGetCurrentIrpStackLocation(irp)->FileObject->FsContext = c;
	finish(irp, STATUS_SUCCESS, 0);
	return STATUS_SUCCESS;
}

/* Ends a handle. Wine 8 dispatches no IRP_MJ_CLEANUP, so closing does it. */
static void end(struct context *c)
{
	BOOLEAN was_open = c->state == OPEN && c->length > 0;
	PIRP waiting;

	c->state = CLOSED;
	if (was_open)
		reflect_event(c, EVENT_REFLECT_CLOSE);
	put_back(c);
	while ((waiting = next_irp(c)) != NULL)
		finish(waiting, STATUS_CANCELLED, 0);
}

static NTSTATUS NTAPI cleanup(PDEVICE_OBJECT device, PIRP irp)
{
	end(IoGetCurrentIrpStackLocation(irp)->FileObject->FsContext);
	finish(irp, STATUS_SUCCESS, 0);
	return STATUS_SUCCESS;
}

static NTSTATUS NTAPI close(PDEVICE_OBJECT device, PIRP irp)
{
	struct context *c = IoGetCurrentIrpStackLocation(irp)->FileObject->FsContext;

	if (c->state != CLOSED)
		end(c);
	discard(&c->flows);
	RemoveEntryList(&c->link);
	ExFreePool(c);
	finish(irp, STATUS_SUCCESS, 0);
	return STATUS_SUCCESS;
}

static void NTAPI unload(PDRIVER_OBJECT driver)
{
	UNICODE_STRING link;

	RtlInitUnicodeString(&link, L"\\??\\WinDivert");
	IoDeleteSymbolicLink(&link);
	IoDeleteDevice(driver->DeviceObject);
}

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT driver, PUNICODE_STRING path)
{
	UNICODE_STRING name, link;
	PDEVICE_OBJECT device;
	NTSTATUS status;

	reset();
	RtlInitUnicodeString(&name, L"\\Device\\WinDivert");
	RtlInitUnicodeString(&link, L"\\??\\WinDivert");
	status = IoCreateDevice(driver, 0, &name, 0x12, 0, FALSE, &device);
	if (!NT_SUCCESS(status))
		return status;
	status = IoCreateSymbolicLink(&link, &name);
	if (!NT_SUCCESS(status)) {
		IoDeleteDevice(device);
		return status;
	}
	driver->MajorFunction[IRP_MJ_CREATE] = create;
	driver->MajorFunction[IRP_MJ_CLEANUP] = cleanup;
	driver->MajorFunction[IRP_MJ_CLOSE] = close;
	driver->MajorFunction[IRP_MJ_DEVICE_CONTROL] = control;
	driver->DriverUnload = unload;
	return STATUS_SUCCESS;
}
