package conf

import "testing"

// TestKindOfSet: DEL decides by a set's name whether the set may have the pod's addresses. So each name must give the
// right kind.
func TestKindOfSet(t *testing.T) {
	const hash = "4STFVNXYVR6HKU33"
	for _, tc := range []struct {
		name string
		kind SetKind
		pods bool
	}{
		{"cali40s:x", ForeignSet, false},
		{"weir", ForeignSet, false},
		{PodsSet, SetOfPods, true},
		{NetworksSet, SetOfNetworks, false},
		{ChainedSet, SetOfChained, true},
		{SendersSet, SetOfSenders, true},
		{IngressMap, SetOfIngress, true},
		{EgressMap, SetOfEgress, true},
		{IngressClasses + hash, SetOfIngress, true},
		{EgressClasses + NoneClass, SetOfEgress, true},
		{SelectorSets + hash, SetOfSelected, true},
		{BlockSets + hash, SetOfBlocks, false},
		{MergedBlockSets + hash, SetOfMergedBlocks, false},
		{MergedSets + hash, SetOfMerged, true},
		{NamedPortSets + hash, SetOfNamedPorts, true},
		{NumberSets + hash, SetOfNumbers, false},
		{SelfSet, SetOfSelves, true},
		{ErrorsSet, SetOfErrors, true},
		{TrialSet, SetOfTrials, false},
		{TrialSet + "-p", SetOfTrials, false},
		{"weir-podsof-" + hash, UnknownSet, true},
		{"weir-networks-of-pods", UnknownSet, true},
		{"weir-later-" + hash, UnknownSet, true},
	} {
		for _, f := range Families {
			name := f.Set(tc.name)
			if k := KindOfSet(name); k != tc.kind || k.MayHavePods() != tc.pods {
				t.Errorf("%s is of the kind %d, and may have pods: %v; want %d, %v", name, k, k.MayHavePods(), tc.kind, tc.pods)
			}
		}
	}
}
