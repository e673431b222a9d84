package cluster

import "testing"

// TestAttacks: the policies of an attack are as large as its name says, and smaller than the API server's limit of 1.5
// MB.
func TestAttacks(t *testing.T) {
	for i, want := range []struct{ policies, peers int }{{1, 900}, {200, 1000}, {4, 1000}, {40, 16_000}} {
		a := Attacks[i]
		all := a.Policies(0)
		data, err := all[len(all)-1].Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if peers := len(all[0].Spec.Ingress[0].From); len(all) != want.policies || peers != want.peers || len(data) > 3<<19 {
			t.Errorf("%s: %d policies of %d peers, %d bytes", a.Name, len(all), peers, len(data))
		}
		t.Logf("%s: %d bytes each", a.Name, len(data))
	}
}
