package conf

const (
	// FlowTable is the nftables table of the inet family with the rules that log allowed first packets. It
	// exists only while an agent records flows.
	FlowTable = "weir-flows"
	// FlowGroup is the netlink log group to which FlowTable's rules copy packets.
	FlowGroup = 89
	// FlowLogPrefix is the text that FlowTable's rules add to a packet.
	FlowLogPrefix = "weir flow"
)
