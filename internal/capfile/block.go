package capfile

// The types of pcapng blocks and of their options (draft-ietf-opsawg-pcapng 4.1 to 4.6, appendix A). Options of different
// blocks share numbers.
const (
	BlockSection      = 0x0A0D0D0A
	BlockInterface    = 1
	BlockOldPacket    = 2 // predecessor of BlockPacket
	BlockSimplePacket = 3 // with neither a time nor an interface
	BlockCounts       = 5
	BlockPacket       = 6

	OptionEnd         = 0
	OptionComment     = 1 // of anything
	OptionOS          = 3 // of a section
	OptionApplication = 4
	OptionName        = 2 // of an interface
	OptionDescription = 3
	OptionResolution  = 9
	OptionFilter      = 11
	OptionOffset      = 14 // in seconds, to add to times
	OptionFlags       = 2  // of a packet
	OptionLost        = 4  // packets lost between the previous packet and this one
	OptionPacketID    = 5
	OptionQueue       = 6
	OptionProcess     = 8 // the process and the thread, 4 bytes each
	OptionStart       = 2 // of statistics
	OptionEndTime     = 3
	OptionDropped     = 5
	OptionAccepted    = 6 // by the filter

	ByteOrderMagic = 0x1A2B3C4D
)
