//! Shares: all nodes compute the same ones, each name is in exactly one, and none is heavier than it need be.

/// What the shares are made by.
#[derive(Clone, Debug)]
pub(super) enum By {
    /// Names in their order, dealt like cards.
    Name,
    /// Weights.
    Weight(Weights),
}

/// A weight for each name.
#[derive(Clone, Debug)]
pub(super) struct Weights {
    /// As known, in the order of the names.
    pub(super) of: Vec<Option<u64>>,
    /// Of the others; 0: they are dealt evenly by count.
    pub(super) default: u64,
}

/// The share of each node.
pub(super) fn split(names: &[String], total: usize, by: &By) -> Vec<Vec<String>> {
    let mut shares = vec![Vec::new(); total];
    let By::Weight(Weights { of, default }) = by else {
        let mut names = names.to_vec();
        names.sort();
        for (place, name) in names.into_iter().enumerate() {
            shares[place % total].push(name);
        }
        return shares;
    };
    let mut weighed: Vec<(u64, &String)> = Vec::new();
    let mut others = Vec::new();
    for (name, weight) in names.iter().zip(of) {
        match weight.or((*default > 0).then_some(*default)) {
            Some(weight) => weighed.push((weight, name)),
            None => others.push(name.clone()),
        }
    }
    // The heaviest first, each into the lightest share; names decide between equals, and so does the share's place.
    weighed.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let mut load = vec![0u64; total];
    for (weight, name) in weighed {
        let lightest = (0..total).min_by_key(|node| (load[*node], shares[*node].len(), *node)).unwrap_or(0);
        load[lightest] = load[lightest].saturating_add(weight);
        shares[lightest].push(name.clone());
    }
    // What nobody knows the time of goes where the fewest are.
    others.sort();
    for name in others {
        let fewest = (0..total).min_by_key(|node| (shares[*node].len(), *node)).unwrap_or(0);
        shares[fewest].push(name);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn names_are_dealt_in_their_order() {
        let shares = split(&words("d a c b e"), 2, &By::Name);
        assert_eq!(shares, [words("a c e"), words("b d")]);
        assert_eq!(split(&words("a"), 3, &By::Name), [words("a"), vec![], vec![]]);
    }

    #[test]
    fn the_heaviest_go_first_and_unknown_ones_where_the_fewest_are() {
        let names = words("slow quick1 quick2 quick3 new1 new2");
        let of = vec![Some(30), Some(10), Some(10), Some(10), None, None];
        let shares = split(&names, 2, &By::Weight(Weights { of: of.clone(), default: 0 }));
        assert_eq!(shares, [words("slow new1 new2"), words("quick1 quick2 quick3")]);
        let shares = split(&names, 2, &By::Weight(Weights { of, default: 30 }));
        assert_eq!(shares, [words("new1 slow"), words("new2 quick1 quick2 quick3")]);
    }

    proptest! {
        #[test]
        fn every_name_is_in_exactly_one_share_and_the_order_of_input_does_not_matter(
            weights in prop::collection::vec(prop::option::of(0u64..1000), 0..60),
            total in 1usize..9,
            default in 0u64..50,
            by_name in any::<bool>(),
            turn in 0usize..60,
        ) {
            let names: Vec<String> = (0..weights.len()).map(|n| format!("t{n}")).collect();
            let by = |of: Vec<Option<u64>>| {
                if by_name { By::Name } else { By::Weight(Weights { of, default }) }
            };
            let shares = split(&names, total, &by(weights.clone()));
            prop_assert_eq!(shares.len(), total);
            let mut all = shares.concat();
            all.sort();
            let mut expected = names.clone();
            expected.sort();
            prop_assert_eq!(all, expected);
            let mut turned: Vec<_> = names.into_iter().zip(weights).collect();
            let length = turned.len().max(1);
            turned.rotate_left(turn % length);
            let (names, weights): (Vec<_>, Vec<_>) = turned.into_iter().unzip();
            prop_assert_eq!(split(&names, total, &by(weights)), shares);
        }
    }
}
